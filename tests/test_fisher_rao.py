"""Fisher-Rao coordinates against the Fisher information itself: the expected square of the score."""

import re

import pytest
import torch
from torch import distributions as td

import posthoc_metric as pm
from posthoc_metric.decoder import fisher_rao
from posthoc_metric.errors import DecoderError

DISPERSION = torch.tensor([0.5, 3.0, 40.0], dtype=torch.float64)
COUNTS = torch.arange(4000, dtype=torch.float64)


class NegativeBinomial(td.Distribution):
    """By mean and dispersion, as scvi-tools has it."""

    def __init__(self, mu, theta):
        super().__init__(mu.shape, validate_args=False)
        self.mu, self.theta = mu, theta

    def log_prob(self, value):
        return td.NegativeBinomial(self.theta, logits=(self.mu / self.theta).log()).log_prob(value)


class ZeroInflated(NegativeBinomial):
    """As scvi-tools has its counts by default."""


#: parameters (B, 3) -> distribution, and every value that it takes, or enough of them
DISCRETE = {
    "Bernoulli": (lambda x: td.Bernoulli(logits=x), torch.arange(2.0)),
    "Binomial": (lambda x: td.Binomial(7, logits=x), torch.arange(8.0)),
    "Poisson": (lambda x: td.Poisson(x.exp()), COUNTS),
    "NegativeBinomial": (lambda x: td.NegativeBinomial(DISPERSION, logits=x), COUNTS),
    "Geometric": (lambda x: td.Geometric(logits=x), COUNTS),
    "mu and theta": (lambda x: NegativeBinomial(x.exp(), DISPERSION), COUNTS),
}


def network(outputs=3):
    generator = torch.Generator().manual_seed(0)
    first, last = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 16), (16, outputs)))
    return lambda z: torch.tanh(z @ first.to(z)) @ (last.to(z) / 4)


def information(make, z, values):
    """``Σ_x p ∇log p ∇log pᵀ`` (d, d) at one latent z (d,), summed over independent outputs."""

    def log_probability(point):
        return make(point[None]).log_prob(values.view(-1, 1))

    p, score = log_probability(z).exp(), torch.func.jacfwd(log_probability)(z)
    return torch.einsum("xo,xoi,xoj->ij", p, score, score)


@pytest.mark.parametrize("name", DISCRETE)
def test_the_pullback_is_the_fisher_information(name):
    make, values = DISCRETE[name]
    net = network()
    decoder = pm.Decoder(lambda z: fisher_rao(make(net(z))), latent_dim=2)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = pm.PullbackMetric(decoder).tensor(z)
    expected = torch.stack([information(lambda p: make(net(p)), row, values.double()) for row in z])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", [td.Categorical, td.OneHotCategorical])
def test_the_pullback_of_classes_is_their_fisher_information(kind):
    net = network(8)

    def make(z):
        return td.Independent(kind(logits=net(z).view(-1, 2, 4), validate_args=False), 1)

    decoder = pm.Decoder(lambda z: make(z), output=fisher_rao, latent_dim=2)
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = net(z).view(-1, 2, 4).softmax(-1)
    score = torch.func.vmap(torch.func.jacrev(lambda row: net(row).view(2, 4).log_softmax(-1)))(z)
    expected = torch.einsum("bsc,bsci,bscj->bij", p, score, score)
    torch.testing.assert_close(pm.PullbackMetric(decoder).tensor(z), expected, rtol=1e-5, atol=1e-8)
    assert decoder.output_dim == 8
    many = fisher_rao(td.Multinomial(9, logits=net(z).view(-1, 2, 4)))
    torch.testing.assert_close(many, 3 * decoder(z).view(-1, 2, 4))


def test_the_length_of_a_path_of_exponential_and_gamma_rates():
    rate = torch.tensor([1.0, 5.0], dtype=torch.float64)
    # Fisher information of a rate: 1 / rate², times the concentration
    assert fisher_rao(td.Exponential(rate)).diff() == pytest.approx(float(rate.log().diff()))
    assert fisher_rao(td.Gamma(torch.tensor(4.0).double(), rate)).diff() == pytest.approx(2 * float(rate.log().diff()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_outcomes_keep_a_finite_derivative(dtype):
    extreme = torch.tensor([[-300.0, 300.0, 0.0]], dtype=dtype)
    for name, (make, _) in DISCRETE.items():
        if name not in ("Poisson", "mu and theta"):
            found = torch.func.jacrev(lambda x, make=make: fisher_rao(make(x)))(extreme)
            assert torch.isfinite(found).all(), name
    for make in (
        lambda x: td.Categorical(logits=x, validate_args=False),
        lambda x: td.Poisson(0 * x, validate_args=False),
    ):
        assert torch.isfinite(torch.func.jacrev(lambda x, make=make: fisher_rao(make(x)))(extreme)).all()


def test_geodesics_of_two_classes_are_arcs():
    """Three classes make an octant of a sphere of radius two."""
    decoder = pm.Decoder(
        lambda z: td.Categorical(logits=torch.cat([z, 0 * z[:, :1]], 1), validate_args=False),
        output=fisher_rao,
        latent_dim=2,
    )
    a, b = torch.tensor([[2.0, -1.0]]).double(), torch.tensor([[-3.0, 1.0]]).double()
    p, q = (torch.cat([x, 0 * x[:, :1]], 1).softmax(1) for x in (a, b))
    found = pm.geodesic(pm.PullbackMetric(decoder), a, b)
    torch.testing.assert_close(found.length, 2 * torch.acos((p * q).sqrt().sum(1)), rtol=1e-4, atol=0)


def test_a_rate_that_rounds_to_nothing_far_away_does_not_stop_the_decoder(monkeypatch):
    """Torch's distributions check their parameters by default, and refuse a rate of zero."""
    # torch.compile turns that off in its process for good
    monkeypatch.setattr(td.Distribution, "_validate_args", True)
    net = network(8)
    rate = lambda z: torch.nn.functional.softplus(1e3 * net(z))  # noqa: E731
    decoder = pm.Decoder(lambda z: td.Exponential(rate(z)), output=fisher_rao, latent_dim=2)
    z = 1e3 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert (rate(z) == 0).any() and torch.isfinite(decoder(z)).all() and torch.isfinite(decoder.jacobian(z)).all()
    with pytest.raises(ValueError, match="rate"):
        td.Exponential(rate(z))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: td.NegativeBinomial(x.exp(), logits=x),
        lambda x: NegativeBinomial(x.exp(), (2 * x).exp()),
        lambda x: td.Gamma(x.exp(), x.exp()),
        lambda x: td.Binomial((3 * x).exp(), logits=x, validate_args=False),
        lambda x: td.Chi2(x.exp()),
    ],
)
def test_what_must_be_constant_and_is_decoded_is_refused(make):
    net = network()
    with pytest.raises(DecoderError, match="must be the same for every latent.*take its mean"):
        pm.Decoder(lambda z: make(net(z)), output=fisher_rao, latent_dim=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: td.Normal(x, 1.0), r"got Normal.*d\.loc / scale"),
        (lambda x: {"px": td.Poisson(x.exp())}, r"torch distribution; got .*r\['px'\]"),
        (lambda x: x, r"torch distribution; got .*Categorical\(logits=x\)"),
        (lambda x: ZeroInflated(x.exp(), DISPERSION), r"got ZeroInflated.*`output=lambda d: .*d\.theta"),
    ],
)
def test_what_has_no_such_coordinates_is_refused_with_what_to_do(make, words):
    net = network()
    with pytest.raises(DecoderError, match=words):
        pm.Decoder(lambda z: make(net(z)), output=fisher_rao, latent_dim=2)


def test_the_advice_for_zero_inflated_counts_is_that_of_the_counts_within():
    net = network()
    with pytest.raises(DecoderError) as refused:
        pm.Decoder(lambda z: ZeroInflated(net(z).exp(), DISPERSION), output=fisher_rao, latent_dim=2)
    advised = eval(re.search(r"`output=(lambda d: .*)`", str(refused.value))[1], {"pm": pm, **vars(td)})
    followed = pm.Decoder(lambda z: ZeroInflated(net(z).exp(), DISPERSION), output=advised, latent_dim=2)
    within = pm.Decoder(lambda z: NegativeBinomial(net(z).exp(), DISPERSION), output=fisher_rao, latent_dim=2)
    z = torch.randn(5, 2, dtype=torch.float64)
    assert torch.allclose(followed(z), within(z))
