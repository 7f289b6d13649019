"""Raw observations beside Fisher-Rao coordinates: each stands where the distribution does whose mean it is."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import distributions as td
from typer.testing import CliRunner

import posthoc_metric as pm
from posthoc_metric.belonging import data_rows
from posthoc_metric.cli.main import app
from posthoc_metric.decoder.observation import Given, observation
from posthoc_metric.errors import DecoderError, InvalidArgumentError
from posthoc_metric.report.figures import frames

DISPERSION = torch.tensor([0.5, 3.0, 40.0, 1.0, 7.0, 2.0]).double()


class NegativeBinomial(td.Distribution):
    """By mean and dispersion, as scvi-tools has it."""

    def __init__(self, mu, theta):
        super().__init__(mu.shape, validate_args=False)
        self.mu, self.theta = mu, theta


#: parameters (B, 6) -> distribution, and observations x -> the distribution whose mean x is
FAMILIES = {
    "Bernoulli": (lambda y: td.Bernoulli(logits=y), lambda x: td.Bernoulli(probs=x)),
    "Binomial": (lambda y: td.Binomial(9, logits=y), lambda x: td.Binomial(9, probs=x / 9)),
    "Poisson": (lambda y: td.Poisson(y.exp()), lambda x: td.Poisson(x, validate_args=False)),
    "NegativeBinomial": (
        lambda y: td.NegativeBinomial(DISPERSION, logits=y),
        lambda x: td.NegativeBinomial(DISPERSION, logits=(x / DISPERSION).log(), validate_args=False),
    ),
    "mu and theta": (
        lambda y: NegativeBinomial(y.exp(), DISPERSION.expand_as(y)),
        lambda x: NegativeBinomial(x, DISPERSION),
    ),
    "Geometric": (lambda y: td.Geometric(logits=y), lambda x: td.Geometric(probs=1 / (1 + x))),
    "Exponential": (lambda y: td.Exponential(y.exp()), lambda x: td.Exponential(1 / x)),
    "Gamma": (lambda y: td.Gamma(DISPERSION, y.exp()), lambda x: td.Gamma(DISPERSION, DISPERSION / x)),
    "Independent": (lambda y: td.Independent(td.Poisson(y.exp()), 1), lambda x: td.Poisson(x, validate_args=False)),
    "OneHotCategorical": (
        lambda y: td.OneHotCategorical(logits=y.view(-1, 2, 3)),
        lambda x: td.OneHotCategorical(probs=x),
    ),
    "Categorical": (
        lambda y: td.Categorical(logits=y.view(-1, 2, 3)),
        lambda x: td.Categorical(probs=torch.nn.functional.one_hot(x, 3).double()),
    ),
    "Multinomial": (
        lambda y: td.Multinomial(5, logits=y.view(-1, 2, 3)),
        lambda x: td.Multinomial(5, probs=x / 5),
    ),
}


def network(z, outputs=6):
    generator = torch.Generator().manual_seed(0)
    first, last = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 16), (16, outputs)))
    return torch.tanh(z @ first.to(z)) @ (last.to(z) / 2)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def of_poisson(**options):
    return pm.Decoder(lambda z: td.Poisson((2 + network(z)).exp()), output=pm.fisher_rao, latent_dim=2, **options)


def counts(latents):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.poisson((2 + network(latents)).exp())


def drawn(make, latents):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(network(latents)).sample()


@pytest.mark.parametrize("name", FAMILIES)
def test_an_observation_stands_where_the_distribution_does_whose_mean_it_is(name):
    make, at = FAMILIES[name]
    latents = normal(200, 2)
    decoder = pm.Decoder(lambda z: make(network(z)), output=pm.fisher_rao, latent_dim=2)
    given = make if name != "mu and theta" else FAMILIES["NegativeBinomial"][0]
    data = drawn(given, latents)
    rows = data_rows(decoder, data, len(latents))
    expected = pm.fisher_rao(at(data)).flatten(1)
    # torch holds probabilities of 0 and 1 a rounding away from them
    torch.testing.assert_close(rows[:], expected, rtol=1e-6, atol=1e-6)
    assert rows.shape == (200, decoder.output_dim)
    torch.testing.assert_close(rows.subset(torch.tensor([7, 3]))[:], rows[torch.tensor([7, 3])])


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "mu and theta"])
def test_coordinates_lead_back_to_means(name):
    make, _ = FAMILIES[name]
    latents = normal(20, 2)
    decoder = pm.Decoder(lambda z: make(network(z)), output=pm.fisher_rao, latent_dim=2)
    plain = make(network(latents))
    mean = plain.probs if "Categorical" in name else plain.mean
    torch.testing.assert_close(decoder.observer.mean(decoder(latents)), mean.flatten(1), rtol=1e-6, atol=1e-9)


def test_the_published_network_finds_the_variance_that_coordinates_have():
    """Counts of large rates vary by one in their coordinates, whatever their rates are."""
    latents = normal(600, 2)
    decoder = pm.Decoder(lambda z: td.Poisson((3 + network(z, 40)).exp()), output=pm.fisher_rao, latent_dim=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        data = torch.poisson((3 + network(latents, 40)).exp())
    repaired = pm.repair(decoder, latents, data, uncertainty="rbf-published")
    variance = repaired.model.noise(repaired.geometry.training).square()
    assert float(variance.mean()) == pytest.approx(1, abs=0.2)
    audit = pm.repair(decoder, latents, data).audit(pairs=0)
    raw = pm.Decoder(lambda z: td.Poisson((3 + network(z, 40)).exp()), latent_dim=2)
    far = pm.repair(raw, latents, data, uncertainty="rbf-published").model.noise(repaired.geometry.training).square()
    assert float(far.mean()) > 5 and all("rbf-published" in row.metrics for row in audit.shells)


def test_coordinates_go_through_observe_as_they_are():
    latents = normal(300, 2)
    data = counts(latents)
    expected = pm.repair(of_poisson(), latents, data).model.state()
    for observe, given in ((lambda x: x, 2 * data.sqrt()), (lambda x: pm.fisher_rao(td.Poisson(x)), data)):
        decoder = of_poisson(observe=observe)
        assert isinstance(decoder.observer, Given)
        found = pm.repair(decoder, latents, given).model.state()
        torch.testing.assert_close(found["log_evidence"], expected["log_evidence"])


def test_observe_serves_decoders_of_any_output():
    decoder = pm.Decoder(network, latent_dim=2, observe=lambda x: x[:, 0] / 255)
    latents = normal(60, 2)
    images = np.zeros((60, 2, 6), dtype=np.uint8)
    images[:, 0] = 100
    assert float(data_rows(decoder, images, 60)[:].mean()) == pytest.approx(100 / 255)
    for observe, words in (
        (lambda x: x, r"`observe` must give a dense tensor of 6 values a row.*\(60, 2, 6\).*gives tensor of shape"),
        (lambda x: x.numpy(), "gives array of shape.*with torch's own functions"),
        (lambda x: x[:, 0].to_sparse(), "must give a dense tensor"),
        (lambda x: x[:, 0] * 1j, "must give real numbers.*complex128"),
        (lambda x: x[:, 0].to("meta"), "must give real numbers.*meta"),
        (lambda x: torch.where(x[:, 0] > 0, torch.nan, 0.0), "finite numbers; it does not for row 0"),
    ):
        other = pm.Decoder(network, latent_dim=2, observe=observe)
        with pytest.raises(InvalidArgumentError, match=words):
            pm.repair(other, latents, images)
    with pytest.raises(InvalidArgumentError, match="`observe` must be a function"):
        pm.Decoder(network, latent_dim=2, observe="counts")


def test_a_single_output_may_come_without_an_axis_and_in_any_precision():
    latents = normal(60, 2)
    for way in (torch.Tensor.float, torch.Tensor.long, torch.Tensor.half):
        decoder = pm.Decoder(lambda z: network(z, 1), latent_dim=2, observe=lambda x, way=way: way(x[:, 0]))
        rows = data_rows(decoder, counts(latents).round(), 60)
        assert rows[:].dtype == torch.float64 and torch.equal(rows[:], counts(latents)[:, :1])
        assert rows[torch.arange(0)].shape == (0, 1)


def test_counts_in_half_precision_are_taken_as_they_are():
    """A dispersion beyond what it holds made every coordinate NaN, and large counts lost their digits."""
    make = lambda y: td.NegativeBinomial(1e5 * torch.ones(6).double(), logits=y - 6)  # noqa: E731
    decoder = pm.Decoder(lambda z: make(network(z)), output=pm.fisher_rao, latent_dim=2)
    data = drawn(make, normal(60, 2)).clamp_max(2048)
    for dtype in (torch.float16, torch.float32):
        found = data_rows(decoder, data.to(dtype), 60)[:]
        torch.testing.assert_close(found, data_rows(decoder, data, 60)[:].float(), rtol=1e-6, atol=1e-6)
    assert pm.invert(decoder, data[:2].half(), starts=16).latents.dtype == torch.float16


def test_class_numbers_one_hot_rows_and_probabilities_are_all_taken():
    decoder = pm.Decoder(lambda z: td.Categorical(logits=network(z).view(-1, 2, 3)), output=pm.fisher_rao, latent_dim=2)
    numbers = torch.tensor([[0, 2], [1, 1]])
    one_hot = torch.nn.functional.one_hot(numbers, 3)
    expected = 2 * one_hot.double().flatten(1)
    truths = one_hot.bool()  # nested lists and tables of them are taken as their arrays are
    others = (numbers.numpy().astype(np.int8), truths, truths.numpy(), truths.tolist(), one_hot.flatten(1).float())
    for data in (numbers, one_hot, *others):
        assert torch.equal(data_rows(decoder, data, 2)[:].double(), expected)
    blurred = torch.full((2, 2, 3), 1 / 3)
    torch.testing.assert_close(data_rows(decoder, blurred, 2)[:], torch.full((2, 6), 2 / 3**0.5))
    single = pm.Decoder(lambda z: td.Categorical(logits=network(z)), output=pm.fisher_rao, latent_dim=2)
    assert torch.equal(data_rows(single, torch.tensor([5, 0]), 2)[:], 2 * torch.eye(6).double()[[5, 0]])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "Poisson",
            lambda x: 2 * (x + 1).sqrt(),
            r"Poisson distributions.*counts, whole numbers from 0; row .*observe=",
        ),
        ("Poisson", lambda x: x.log1p(), "counts, whole numbers from 0"),
        ("NegativeBinomial", lambda x: -x, "NegativeBinomial distributions.*counts"),
        ("Bernoulli", lambda x: 255 * x, "numbers from 0 to 1; row .* for its 255"),
        ("Bernoulli", lambda x: torch.pi * x, "numbers from 0 to 1"),
        ("Binomial", lambda x: x + 9, "from 0 to that of the trials"),
        ("Multinomial", lambda x: 2 * x, "add up to that of the trials.*for what adds up to 10"),
        ("OneHotCategorical", lambda x: 1.5 * x - 0.25, "the first for (its -0.25|what adds up to 0.75)"),
        ("Exponential", lambda x: 0 * x, "numbers above 0"),
        ("Categorical", lambda x: x + 1, "class numbers from 0 below 3; row .* the first for its 3"),
        ("Categorical", lambda x: x - 1, "class numbers from 0 below 3; row .* the first for its -1"),
        ("OneHotCategorical", lambda x: 2 * x, "add up to 1 over the axis of classes.*the first for what adds up to 2"),
        ("OneHotCategorical", lambda x: x.mT, "the last one.*seems to come first: move it to the end"),
        ("OneHotCategorical", lambda x: x[..., :2], "must have 6 values a row.*or 2 of class numbers; got 4"),
        ("Poisson", lambda x: x[:, :5], "must have 6 values a row.*; got 5"),
    ],
)
def test_what_cannot_be_an_observation_is_refused_whatever_the_model(name, change, words):
    make, _ = FAMILIES[name]
    latents = normal(60, 2)
    decoder = pm.Decoder(lambda z: make(network(z)), output=pm.fisher_rao, latent_dim=2)
    for uncertainty in ("rbf", "gp"):
        with pytest.raises(InvalidArgumentError, match=words):
            pm.repair(decoder, latents, change(drawn(make, latents)), uncertainty=uncertainty)


def test_rows_are_named_as_the_caller_counts_them():
    latents = normal(60, 2)
    data = counts(latents)
    data[41] = 0.5
    with pytest.raises(InvalidArgumentError, match="row 41 and 0 others of 60 looked at.*the first for its 0.5"):
        pm.repair(of_poisson(), latents, data)
    with pytest.raises(InvalidArgumentError, match="row 41 and 0 others"):
        pm.invert(of_poisson(), data)
    data[41] = torch.nan
    for decoder in (of_poisson(), of_poisson(observe=lambda x: 2 * x.sqrt())):
        with pytest.raises(InvalidArgumentError, match="`data` must be finite; row 41 is NaN or infinite"):
            pm.invert(decoder, data)


def test_a_memory_map_stays_one_and_is_brought_over_in_blocks(tmp_path):
    latents = normal(300, 2)
    data = counts(latents)
    np.save(tmp_path / "x.npy", data.numpy().astype(np.uint16))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    repaired = pm.repair(of_poisson(), latents, mapped)
    assert repaired.data._data is mapped
    rows = repaired.geometry.training_rows[:3]
    torch.testing.assert_close(repaired.data[:3], 2 * data[rows].sqrt())


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix", "csr_array", "coo_array"])
def test_a_sparse_table_is_read_in_blocks_too(kind):
    latents = normal(300, 2)
    data = counts(latents)
    sparse = getattr(scipy.sparse, kind)(data.numpy().astype(np.int32))
    repaired = pm.repair(of_poisson(), latents, sparse)
    assert scipy.sparse.issparse(repaired.data._data)
    assert torch.equal(repaired.data[:], data_rows(of_poisson(), data, 300).subset(repaired.geometry.training_rows)[:])
    plain = pm.Decoder(lambda z: td.Poisson((2 + network(z)).exp()), latent_dim=2)
    assert torch.equal(data_rows(plain, sparse, 300)[torch.tensor([9, 4])], data[[9, 4]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.Tensor.to_sparse, "must be a dense tensor.*sparse_coo. Call .to_dense"),
        (torch.Tensor.to_sparse_csr, "must be a dense tensor.*sparse_csr. Call .to_dense"),
        (lambda x: x.to("meta"), "must hold numbers.*meta device"),
        (
            lambda x: torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged),
            "must be a dense tensor; got nested",
        ),
        (
            lambda x: scipy.sparse.csr_array(x.numpy() * 1j),
            "must be a table .* of real numbers.*complex128. Pass one of floats",
        ),
    ],
    ids=["sparse", "rows compressed", "meta", "nested", "complex"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_what_cannot_be_read_by_rows_is_refused_whatever_its_dtype(change, words):
    data = counts(normal(60, 2)) > 5
    for kind in (torch.bool, torch.float64):
        with pytest.raises(InvalidArgumentError, match=f"`data` {words}"):
            data_rows(of_poisson(), change(data.to(kind)), 60)


def test_counts_scaled_to_a_common_total_are_told_how_to_come():
    latents = normal(60, 2)
    scaled = 1000 * counts(latents) / counts(latents).sum(1, keepdim=True)
    dispersed = lambda z: td.NegativeBinomial(DISPERSION, logits=network(z))  # noqa: E731
    for decoder, words in (
        (of_poisson(), r"observe=lambda x: pm.fisher_rao\(Poisson\(x\)\)"),
        (pm.Decoder(dispersed, output=pm.fisher_rao, latent_dim=2), r"NegativeBinomial\(r, logits=\(x / r\).log\(\)\)"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            pm.repair(decoder, latents, scaled)
    r = DISPERSION
    observe = lambda x: pm.fisher_rao(td.NegativeBinomial(r, logits=(x / r).log()))  # noqa: E731
    decoder = pm.Decoder(dispersed, output=pm.fisher_rao, latent_dim=2, observe=observe)
    torch.testing.assert_close(data_rows(decoder, scaled, 60)[:], 2 * (r.sqrt() * (scaled / r).sqrt().asinh()))


class Table(torch.nn.Module):
    """Takes only so many rows, as an exported program does."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, z):
        if z.shape != (self.rows, 2):
            raise ValueError(f"expected {self.rows} rows")
        return td.Poisson(network(z).exp())


@pytest.mark.filterwarnings("ignore::posthoc_metric.errors.BatchWarning")
@pytest.mark.parametrize(
    "decoder",
    [
        lambda: pm.Decoder(lambda z: pm.fisher_rao(td.Poisson(network(z).exp())), latent_dim=2),
        lambda: pm.Decoder(network, output=lambda y: pm.fisher_rao(td.Poisson(y.exp())), latent_dim=2),
        lambda: pm.Decoder(
            network, output=lambda y: pm.fisher_rao(td.Poisson(y.exp().view(-1, 2, 3))).flatten(1), latent_dim=2
        ),
        lambda: pm.Decoder(Table(1), output=pm.fisher_rao, latent_dim=2),
        lambda: pm.Decoder(Table(5), output=pm.fisher_rao, latent_dim=2),
    ],
    ids=["inside", "of parameters", "flattened", "one by one", "batches of five"],
)
def test_wherever_coordinates_are_taken_they_are_recognised(decoder):
    found = decoder()
    assert torch.equal(found.observer(torch.full((2, 6), 9.0), torch.arange(2)), torch.full((2, 6), 6.0))


def test_data_beside_an_output_that_is_made_of_coordinates_are_refused_without_observe():
    latents = normal(60, 2)
    make = lambda z: 3 * pm.fisher_rao(td.Poisson((2 + network(z)).exp()))  # noqa: E731
    pm.repair(pm.Decoder(make, latent_dim=2), latents)
    with pytest.raises(DecoderError, match="`data` cannot be .* Do without, or wrap the decoder with observe="):
        pm.repair(pm.Decoder(make, latent_dim=2), latents, counts(latents))
    pm.repair(pm.Decoder(make, latent_dim=2, observe=lambda x: 6 * x.sqrt()), latents, counts(latents))


def test_without_fisher_rao_data_are_compared_as_they_are():
    decoder = pm.Decoder(lambda z: td.Poisson((2 + network(z)).exp()), latent_dim=2)
    data = counts(normal(20, 2)) + 0.5
    assert decoder.observer is None and torch.equal(data_rows(decoder, data, 20)[:], data)
    assert observation([], data) is None


def test_counts_are_inverted_as_counts():
    latents = normal(5, 2)
    decoder = pm.Decoder(lambda z: td.Poisson((12 + network(z)).exp()), output=pm.fisher_rao, latent_dim=2)
    data = (12 + network(latents)).exp().round()
    found = pm.invert(decoder, data.numpy().astype(np.int64))
    assert bool(np.all(found.residual < 1e-4))


def test_a_batch_of_observations_is_mixed_in_coordinates():
    latents = normal(60, 2)
    metric = pm.PullbackMetric(of_poisson())
    mix = pm.geodesic_mixup(metric, latents, (latents[:, 0] > 0).long(), pairs=4, share=0.5, curve="straight")
    x, y = mix(counts(latents).long(), (latents[:, 0] > 0).long())
    kept = (x == 2 * counts(latents).sqrt().to(x)).all(1)
    assert x.shape == (60, 6) and int(kept.sum()) == 30 and y.shape == (60, 2)
    with pytest.raises(InvalidArgumentError, match="`x` must be observations of the Poisson.* counts, whole numbers"):
        mix(2 * counts(latents).sqrt() + 0.1, (latents[:, 0] > 0).long())
    with pytest.raises(InvalidArgumentError, match="`x` must be a dense tensor"):
        mix(counts(latents).to_sparse(), (latents[:, 0] > 0).long())


@pytest.mark.parametrize("observe", [None, lambda x: pm.fisher_rao(td.Bernoulli(x / 255))])
def test_images_are_drawn_as_means(observe):
    latents = normal(60, 2)
    make = lambda z: td.Bernoulli(logits=4 * network(z))  # noqa: E731
    decoder = pm.Decoder(make, output=pm.fisher_rao, latent_dim=2, observe=observe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        repaired = pm.repair(decoder, latents)
    curve = repaired.decoder_metric.geodesic(latents[:1], latents[1:2])
    figure = frames(repaired, curve, curve, (2, 3)).figure
    shown = figure.subfigs[0].axes[0].images[0].get_array()
    expected = torch.sigmoid(4 * network(latents[:1])).reshape(2, 3)
    assert np.allclose(shown, expected.numpy(), atol=1e-5)


class Rates(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.latent_dim, self.layer = 2, torch.nn.Linear(2, 6)

    def forward(self, z):
        rate = (2 + torch.tanh(self.layer(z))).exp()
        return {"px": td.Poisson(rate), "rate": rate}


def test_the_command_line_takes_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, latents = Rates(), normal(80, 2)
    torch.save(model.state_dict(), "m.pt")
    np.save("z.npy", latents.numpy())
    rates = model(latents.float())["px"].rate.detach()
    np.save("x.npy", torch.poisson(rates, generator=torch.Generator().manual_seed(0)).numpy())
    np.save("log.npy", np.log1p(np.load("x.npy")))
    decoder = ["--checkpoint", "m.pt", "--factory", f"{__file__}:Rates", "--output", "px", "--fisher-rao"]

    def run(command, *arguments):
        done = CliRunner().invoke(app, [command, *decoder, *arguments])
        return done.exit_code, " ".join(done.output.split())

    scipy.sparse.save_npz("x.npz", scipy.sparse.csr_array(np.load("x.npy")))
    code, output = run("describe")
    assert code == 0 and "data are observations of Poisson distributions: counts, whole numbers" in output
    code, output = run("describe", "--output", "rate")
    assert code == 2 and "`--fisher-rao` needs a decoder that returns a torch distribution" in output
    assert run("repair", "--latents", "z.npy", "--data", "x.npz", "--out", "run")[0] == 0
    code, output = run("audit", "run", "--data", "x.npy", "--pairs", "0")
    assert code in (0, 1) and "smoothness" in output
    code, output = run("audit", "run", "--data", "log.npy")
    assert code == 2 and "counts, whole numbers from 0" in output and "in Python only" in output
    code, output = run("audit", "run", "--data", "z.npy")
    assert code == 2 and "6 values a row" in output


class Coordinates(Rates):
    def forward(self, z):
        return pm.fisher_rao(td.Poisson((2 + torch.tanh(self.layer(z))).exp(), validate_args=False))


@pytest.mark.filterwarnings("ignore")
def test_a_traced_model_that_takes_coordinates_itself_needs_observe():
    latents = normal(60, 2)
    traced = torch.jit.trace(Coordinates(), latents[:4].float())
    assert pm.Decoder(traced, latent_dim=2).observer is None
    decoder = pm.Decoder(traced, latent_dim=2, observe=lambda x: 2 * x.sqrt())
    assert torch.equal(data_rows(decoder, counts(latents), 60)[:], 2 * counts(latents).sqrt())
