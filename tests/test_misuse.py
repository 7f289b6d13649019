"""What users get wrong, one row each: an error of this library's tree whose message says what was wrong and what to do.

A row is a call and a pattern that the message must match.  The second table has what looks like misuse and must work.
"""

from __future__ import annotations

import errno
import os
import types
import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import posthoc_metric as pm
from posthoc_metric import geometry, plots
from posthoc_metric.cli.main import app
from posthoc_metric.diagnostics import audit
from posthoc_metric.errors import OutputError, PosthocMetricError
from posthoc_metric.estimators import GeodesicDistance, GeodesicKMeans, GeodesicKMedoids
from posthoc_metric.geodesic import exp, frechet_mean, log
from posthoc_metric.report import write_report
from posthoc_metric.uncertainty import RBF

NAN = float("nan")


@pytest.fixture(scope="module")
def e(tmp_path_factory):
    """Everything that a row may need: a decoder, latents, data, a repaired metric, a solution, files."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5))
    decoder = pm.Decoder(net, latent_dim=2)
    z = torch.randn(60, 2, generator=torch.Generator().manual_seed(1))
    x = decoder(z)
    metric = pm.repair(decoder, z, x)
    folder = tmp_path_factory.mktemp("misuse")
    torch.save(net.state_dict(), folder / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(net), folder / "script.pt")
    metric.save(folder / "r.safetensors")
    np.save(folder / "z.npy", z.numpy())
    np.save(folder / "x.npy", x.numpy())
    (folder / "text.txt").write_text("latents")
    holed, broken = z.clone(), x.clone()
    holed[3, 1] = broken[40, 2] = NAN
    return types.SimpleNamespace(
        net=net, decoder=decoder, z=z, x=x, metric=metric, folder=folder, holed=holed, broken=broken,
        solution=metric.geodesic(z[:2], z[2:4]), classes=torch.zeros(60, dtype=torch.long), n=z.numpy(),
        make=lambda: nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5)),
    )  # fmt: skip


def linear(count, out):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return pm.Decoder(nn.Linear(count, out))


class Conditioned(nn.Module):
    """It adds its parts up, so that it runs with a table of conditions too, each of them beside every latent."""

    def __init__(self):
        super().__init__()
        self.latent, self.condition = nn.Linear(2, 4), nn.Linear(3, 4)

    def forward(self, z, condition):
        return self.latent(z) + self.condition(condition)


LATENTS = "`latents` must"

MISUSES = {
    # wrapping a decoder
    "Decoder of nothing": (lambda e: pm.Decoder(None), "`model` must be a module or a function.*got NoneType"),
    "Decoder of a path": (lambda e: pm.Decoder("model.pt"), "`model` must.*got str.*load_decoder"),
    "Decoder of a class": (lambda e: pm.Decoder(nn.Linear), "`model` must.*class Linear.*Make an instance"),
    "Decoder of weights": (lambda e: pm.Decoder(e.net.state_dict()), "`model` must.*OrderedDict.*load_decoder"),
    "Decoder of a Decoder": (lambda e: pm.Decoder(e.decoder), "`model` is a Decoder already"),
    "latent_dim of zero": (lambda e: pm.Decoder(e.net, latent_dim=0), r"`latent_dim` must be a positive.*got int \(0"),
    "latent_dim as a truth value": (lambda e: pm.Decoder(e.net, latent_dim=True), "`latent_dim` must be.*got bool"),
    "n_jobs as a NumPy truth value": (lambda e: e.metric.distances(e.z[:3], n_jobs=np.True_), "`n_jobs` must be None"),
    "starts as a truth value": (
        lambda e: pm.invert(e.decoder, e.x, starts=True),
        "`starts` is .* integer of at least 1; got bool",
    ),
    "latent_dim as text": (lambda e: pm.Decoder(e.net, latent_dim="2"), "`latent_dim` must be a positive integer"),
    "latent_dim of another model": (
        lambda e: pm.Decoder(e.net, latent_dim=3),
        "latent dimension tried: 3.*Check latent_d",
    ),
    "latent_shape against latent_dim": (
        lambda e: pm.Decoder(e.net, latent_dim=2, latent_shape=(3,)),
        "`latent_shape`.*holds 3.*`latent_dim` is 2.*Drop one",
    ),
    "latent_shape a float": (lambda e: pm.Decoder(e.net, latent_shape=2.5), "`latent_shape` must.*such as.*got"),
    "method that is not there": (lambda e: pm.Decoder(e.net, method="decode"), "`method` is 'decode'.*It has: "),
    "method a number": (lambda e: pm.Decoder(e.net, method=3), "`method` must be the name.*got int"),
    "output of a tensor": (lambda e: pm.Decoder(e.net, output="x"), "`output` is 'x'.*it returns tensor of shape"),
    "a model that holds a condition for each row": (
        lambda e: pm.Decoder(lambda z: e.net(z) + e.x[: len(z)], latent_dim=2),
        "same output in every row of a batch.*It holds something for each row.*give it with condition=",
    ),
    "a model that holds conditions for its only batch": (
        lambda e: pm.Decoder(lambda z: torch.cat([e.net(z), e.x], 1), latent_dim=2),
        "same output in every row of a batch.*It holds something for each row",
    ),
    "four conditions for the four rows of the first call": (
        lambda e: pm.Decoder(Conditioned(), latent_dim=2, condition=torch.rand(4, 3)),
        r"couples the rows.*One condition serves all rows: an array of shape \(4, 3\)",
    ),
    "a model that holds conditions for four rows": (
        lambda e: pm.Decoder(lambda z: torch.cat([e.net(z), e.x[:4]], 1), latent_dim=2),
        "same output in every row of a batch.*It holds something for each row",
    ),
    "an output of no numbers": (
        lambda e: pm.Decoder(lambda z: z[:, :0], latent_dim=2),
        "decoder must return at least one number.*4 latents gave none.*Check which part",
    ),
    "probed at latents where it gives no numbers": (
        lambda e: pm.Decoder(nn.Sequential(nn.Linear(2, 0)), probe=e.z),
        "decoder must return at least one number",
    ),
    "one condition for each row": (
        lambda e: pm.Decoder(Conditioned(), latent_dim=2, condition=torch.rand(50, 3)),
        r"couples the rows.*One condition serves all rows: an array of shape \(50, 3\).*wrap the model once for each",
    ),
    "condition for a model without": (
        lambda e: pm.Decoder(e.net, latent_dim=2, condition=torch.zeros(1, 3)),
        "cannot be called.*takes 2 positional arguments but 3.*condition=",
    ),
    "probe of another width": (
        lambda e: pm.Decoder(e.net, probe=e.x),
        "`probe` must have 2 columns.*got tensor of shape",
    ),
    "probe without rows": (
        lambda e: pm.Decoder(e.net, probe=e.z[:0]),
        "`probe` must hold at least one latent.*Leave it",
    ),
    "max_bytes of zero": (lambda e: pm.Decoder(e.net, max_bytes=0), "`max_bytes` must be a positive.*got 0"),
    # latents of every wrong kind; the same check stands at every front door
    "a single point": (lambda e: e.decoder(e.z[0]), r"`z` must have shape \(B, 2\).*batch axis: `z\[None\]`"),
    "a number": (lambda e: e.decoder(3), r"`z` must have shape \(B, 2\); got int \(3\). Pass an array"),
    "three axes": (lambda e: e.decoder(e.z[None]), r"`z` must have shape.*\(1, 60, 2\).*Flatten"),
    "batches of one size": (
        lambda e: e.decoder(list(e.z.split(30))),
        r"`z` must.*Join its batches first: torch\.cat\(z\)",
    ),
    "batches of two sizes": (
        lambda e: pm.repair(e.decoder, list(e.z.split(40))),
        r"`latents` must.*got list.*Join its batches first: torch\.cat\(latents\)",
    ),
    "batches of arrays": (
        lambda e: e.decoder([rows.numpy() for rows in e.z.split(40)]),
        r"`z` must.*Join its batches first: numpy\.concatenate\(z\)",
    ),
    "no batches": (lambda e: e.decoder([]), r"`z` must have shape \(B, 2\); got list \(\[\]\)\. (?!Join)"),
    "a loader": (
        lambda e: e.decoder(DataLoader(TensorDataset(e.z), 40)),
        "`z` must.*DataLoader.*Collect.*torch.cat of",
    ),
    "a data set with labels": (
        lambda e: e.decoder(TensorDataset(e.z, e.z[:, 0])),
        "`z` must.*TensorDataset.*Collect.*torch.stack of rows",
    ),
    "an iterator": (lambda e: e.decoder(iter(e.z)), "`z` must.*Collect what it gives in one array"),
    "transposed latents": (lambda e: e.decoder(e.z.T), r"`z` must have 2 columns.*\(2, 60\).*not transposed"),
    "nothing": (lambda e: e.decoder(None), "`z` must be a tensor, a NumPy array.*got NoneType"),
    "text": (lambda e: e.decoder(["a", "b"]), "`z` must be a tensor.*got list.*dtype=float"),
    "ragged lists": (lambda e: e.decoder([[1, 2], [3]]), "`z` must be a tensor.*rows must have one length"),
    "objects": (lambda e: e.decoder(np.array([[1, None]], dtype=object)), "`z` must.*dtype object.*dtype=float"),
    "NaN in a row": (lambda e: e.decoder(e.holed), "`z` must be finite; row 3 is NaN or infinite. Remove"),
    "complex numbers": (lambda e: e.decoder(e.z.to(torch.complex64)), "`z` must hold real.*complex64.*float array"),
    "complex NumPy numbers": (lambda e: e.decoder(e.n.astype(complex)), "`z` must hold real.*complex128.*float array"),
    "booleans": (lambda e: e.decoder(e.z > 0), "`z` must hold real numbers; got tensor.*bool"),
    "a sparse tensor": (lambda e: e.decoder(e.z.to_sparse()), r"`z` must be a dense tensor.*sparse_coo.*to_dense\(\)"),
    "an annotated table": (lambda e: e.decoder(types.SimpleNamespace(obsm={})), r"`z` must.*z\.obsm\[key\]"),
    "a sparse table in a file": (
        lambda e: pm.repair(e.decoder, e.z, types.SimpleNamespace(to_memory=None)),
        r"`data` must.*Call \.to_memory\(\)",
    ),
    "a SciPy sparse matrix": (lambda e: e.decoder(scipy.sparse.csr_matrix(e.n)), r"`z` must.*csr_matrix.*toarray\(\)"),
    "a nested tensor": (
        lambda e: e.decoder(torch.nested.nested_tensor([e.z[0], e.z[1]])),
        "`z` must be a dense tensor; got nested tensor.*Pad",
    ),
    "the meta device": (lambda e: e.decoder(torch.zeros(1, 2, device="meta")), "`z` must hold numbers.*meta device"),
    "eight-bit floats": (lambda e: e.decoder(e.z.to(torch.float8_e4m3fn)), r"`z` must hold real.*float8.*\.float\(\)"),
    "a masked array": (lambda e: e.decoder(np.ma.masked_greater(e.n, 1)), "`z` must be whole; got a masked.*Fill"),
    "dates": (lambda e: e.decoder(np.array([["2020-01-01"] * 2], dtype="M8[D]")), "`z` must be a tensor.*datetime64"),
    "tangents of other rows": (
        lambda e: e.decoder.jvp(e.z, e.z[:3]),
        "`v` must hold one vector for each of the 60.*got 3",
    ),
    "cotangents of latent width": (lambda e: e.decoder.vjp(e.z, e.z), "`u` must have 5 columns, the output width"),
    # files
    "no such checkpoint": (
        lambda e: pm.load_decoder(e.folder / "no.pt"),
        "`path` must be an existing.*no.pt.*spelling",
    ),
    "a checkpoint path of None": (lambda e: pm.load_decoder(None), "`path` must be the path.*got NoneType"),
    "a module as checkpoint": (lambda e: pm.load_decoder(e.net), "`path` must be the path.*got Sequential"),
    "an empty path": (lambda e: pm.load_decoder(""), "`path` must be the path"),
    "a folder of other things": (lambda e: pm.load_decoder(e.folder), "is a folder.*Pass the checkpoint file inside"),
    "an array as checkpoint": (lambda e: pm.load_decoder(e.folder / "z.npy"), "array in NumPy's.*no model"),
    "a text file as checkpoint": (lambda e: pm.load_decoder(e.folder / "text.txt"), "no container this library reads"),
    "weights without a class": (
        lambda e: pm.load_decoder(e.folder / "w.pt"),
        "holds weights and no model.*Pass factory=",
    ),
    "a repaired metric as decoder": (lambda e: pm.load_decoder(e.folder / "r.safetensors"), "no model.*Pass factory="),
    "factory without a colon": (
        lambda e: pm.load_decoder(e.folder / "w.pt", factory="nocolon"),
        "`factory` must be a class.*'package.module:Class'",
    ),
    "factory of no module": (
        lambda e: pm.load_decoder(e.folder / "w.pt", factory="no.such:Class"),
        "`factory` is 'no.such:Class'.*cannot be imported.*PYTHONPATH",
    ),
    "factory of an empty module": (lambda e: pm.load_decoder(e.folder / "w.pt", factory=":C"), "cannot be imported"),
    "factory that makes a number": (
        lambda e: pm.load_decoder(e.folder / "w.pt", factory=lambda: 3),
        "`factory` must make a torch module.*made int",
    ),
    "factory that raises": (
        lambda e: pm.load_decoder(e.folder / "w.pt", factory=lambda: 1 / 0),
        "`factory` cannot be called.*ZeroDivisionError.*factory_kwargs",
    ),
    "factory_kwargs as a list": (
        lambda e: pm.load_decoder(e.folder / "w.pt", factory=e.make, factory_kwargs=[1]),
        "`factory_kwargs` must be a dictionary.*got list",
    ),
    "factory for a whole model": (
        lambda e: pm.load_decoder(e.folder / "script.pt", factory=e.make),
        "`factory` is for weights.*Leave factory= out",
    ),
    "weights of another class": (
        lambda e: pm.load_decoder(e.folder / "w.pt", factory=lambda: nn.Linear(2, 5)),
        "do not fit the module.*Check the class",
    ),
    "key that is not there": (
        lambda e: pm.load_decoder(e.folder / "w.pt", factory=e.make, key="ema"),
        "`key` is 'ema', which is not in.*it holds '0.weight'",
    ),
    "key a number": (lambda e: pm.load_decoder(e.folder / "w.pt", factory=e.make, key=3), "`key` must be a string"),
    "trust as text": (
        lambda e: pm.load_decoder(e.folder / "w.pt", factory=e.make, trust="no"),
        "`trust` must be True or",
    ),
    # repair
    "repair of a raw module": (
        lambda e: pm.repair(e.net, e.z),
        "`decoder` must be a wrapped.*Wrap it first: pm.Decoder",
    ),
    "repair with arguments swapped": (lambda e: pm.repair(e.z, e.decoder), "`decoder` must be a wrapped.*got Tensor"),
    "latents and data swapped": (lambda e: pm.repair(e.decoder, e.x, e.z), f"{LATENTS} have 2 columns.*not data"),
    "latents of one dimension": (lambda e: pm.repair(e.decoder, e.z[:, 0]), f"{LATENTS} have shape"),
    "too few latents": (lambda e: pm.repair(e.decoder, e.z[:5]), f"{LATENTS} hold at least 20 points.*got 5. Encode"),
    "no latents": (lambda e: pm.repair(e.decoder, e.z[:0]), f"{LATENTS} hold at least 20 points.*got 0"),
    "one latent repeated": (lambda e: pm.repair(e.decoder, e.z[:1].repeat(50, 1)), f"{LATENTS} differ.*collapsed"),
    "transposed training latents": (lambda e: pm.repair(e.decoder, e.z.T), f"{LATENTS} have 2 columns.*transposed"),
    "latents with NaN": (lambda e: pm.repair(e.decoder, e.holed), f"{LATENTS} be finite; row 3 is NaN"),
    "data of another length": (lambda e: pm.repair(e.decoder, e.z, e.x[:10]), "`data` must have one row for.*got 10"),
    "data of another width": (
        lambda e: pm.repair(e.decoder, e.z, e.x[:, :3]),
        "`data` must have 5 values a row.*got 3",
    ),
    "data with NaN": (lambda e: pm.repair(e.decoder, e.z, e.broken), "`data` must be finite; of.*, row 40 is NaN"),
    "data of text": (lambda e: pm.repair(e.decoder, e.z, np.full((60, 5), "a")), "`data` must hold real.*float array"),
    "data a number": (lambda e: pm.repair(e.decoder, e.z, 3), r"`data` must have shape \(N, D\)"),
    "sparse data": (lambda e: pm.repair(e.decoder, e.z, e.x.to_sparse()), "`data` must be a dense tensor"),
    "complex data": (lambda e: pm.repair(e.decoder, e.z, e.x.to(torch.complex64)), "`data` must hold real.*complex64"),
    "a misspelt uncertainty": (
        lambda e: pm.repair(e.decoder, e.z, uncertainty="rfb"),
        "`uncertainty` must be one of 'rbf'",
    ),
    "a class as uncertainty": (
        lambda e: pm.repair(e.decoder, e.z, uncertainty=RBF),
        "`uncertainty` must.*Make an instance",
    ),
    "a model fitted in another dimension": (
        lambda e: pm.repair(linear(3, 5), torch.cat([e.z, e.z[:, :1] ** 2], 1), uncertainty=e.metric.model),
        "`uncertainty` must be a model of 3-dim.*RBF fitted on latents of dimension 2. Pass an unfitted",
    ),
    "published RBF without data": (
        lambda e: pm.repair(e.decoder, e.z, uncertainty="rbf-published"),
        "`data` must be given.*or use uncertainty=",
    ),
    "inflation as text": (lambda e: pm.repair(e.decoder, e.z, inflation="ten"), "`inflation` is the cost.*must lie in"),
    "inflation as digits": (lambda e: pm.repair(e.decoder, e.z, inflation="10"), "`inflation` is.*got str.*'10'"),
    "a complex inflation": (lambda e: pm.repair(e.decoder, e.z, inflation=10j), "`inflation` is.*must lie in.*complex"),
    "inflation of NaN": (lambda e: pm.repair(e.decoder, e.z, inflation=NAN), "`inflation` is.*must lie in.*nan"),
    "a quantile in percent": (
        lambda e: pm.repair(e.decoder, e.z, support_quantile=99),
        r"`support_quantile`.*\(0, 1\)",
    ),
    "a condition number below one": (lambda e: pm.repair(e.decoder, e.z, max_condition_number=0.5), "bound on κ"),
    "seed as text": (lambda e: pm.repair(e.decoder, e.z, seed="a"), "`seed` must be an integer from 0.*got str"),
    "seed below zero": (lambda e: pm.repair(e.decoder, e.z, seed=-1), r"`seed` must be an integer.*got int \(-1\)"),
    # metrics
    "PullbackMetric of a raw module": (
        lambda e: pm.PullbackMetric(e.net),
        "`decoder` must be a wrapped.*Wrap it first",
    ),
    "FunctionMetric with arguments swapped": (lambda e: pm.FunctionMetric(2, lambda z: z), "`fn` must be a function"),
    "FunctionMetric of dimension zero": (
        lambda e: pm.FunctionMetric(lambda z: z, 0),
        "`dim` is the latent dimension and must be an integer of at least 1",
    ),
    "a metric of a wrong shape": (
        lambda e: pm.FunctionMetric(lambda z: z, 2).tensor(e.z),
        r"`fn` must return real numbers of shape \(60, 2, 2\).*batch axis first",
    ),
    "a metric of nothing": (
        lambda e: pm.FunctionMetric(lambda z: None, 2).tensor(e.z),
        "`fn` must return real numbers",
    ),
    "a complex metric": (
        lambda e: pm.FunctionMetric(lambda z: torch.eye(2, dtype=torch.complex64).expand(len(z), 2, 2), 2).tensor(e.z),
        "`fn` must return real numbers.*complex64",
    ),
    "a metric that is not symmetric": (
        lambda e: pm.FunctionMetric(lambda z: z.new_tensor([[1, 5], [0, 1]]).expand(len(z), 2, 2), 2).tensor(e.z[:2]),
        "`fn` must return symmetric matrices; rows 0, 1 are not.*0.5",
    ),
    "a negative metric": (
        lambda e: pm.FunctionMetric(lambda z: -torch.eye(2).expand(len(z), 2, 2), 2).log_volume(e.z[:1]),
        "metric must be positive semi-definite; at the points in `z` row 0 is not",
    ),
    "points of data width": (lambda e: e.metric.tensor(e.x), "`z` must have 2 columns"),
    "vectors of other rows": (
        lambda e: e.metric.inner(e.z, e.z[:3], e.z),
        "`u` must hold one vector for each of the 60",
    ),
    # geodesics
    "pairs of unequal number": (
        lambda e: e.metric.geodesic(e.z[:2], e.z[:3]),
        "`end` must hold one point for each of the 2",
    ),
    "ends that are data": (lambda e: e.metric.geodesic(e.x[:2], e.x[:2]), "`start` must have 2 columns.*not data"),
    "ends with NaN": (lambda e: e.metric.geodesic(e.holed, e.z), "`start` must be finite; row 3"),
    "a misspelt option": (
        lambda e: e.metric.geodesic(e.z, e.z, max_iter=3),
        "`max_iter` is no option.*Did you mean `max_st",
    ),
    "an unknown solver": (lambda e: e.metric.geodesic(e.z, e.z, solver="newton"), "`solver` must be.*'newton'"),
    "an unknown start": (lambda e: e.metric.geodesic(e.z, e.z, starts="zigzag"), "`starts` must name some of straight"),
    "one point on a curve": (lambda e: e.metric.geodesic(e.z, e.z, num_points=1), "`num_points` must.*at least 2"),
    "a tolerance of zero": (lambda e: e.metric.geodesic(e.z, e.z, tol=0), "`tol` must be a positive number"),
    "a support that is data": (lambda e: e.metric.geodesic(e.z, e.z, support=e.x), "`support` must have 2 columns"),
    "geodesic of a decoder": (
        lambda e: pm.geodesic(e.decoder, e.z[:2], e.z[2:4]),
        "`metric` must be a posthoc_metric.Metric; got Decoder.*PullbackMetric",
    ),
    "geodesic with the metric last": (
        lambda e: pm.geodesic(e.z[:2], e.z[2:4], e.metric),
        "`metric` must be.*got tensor",
    ),
    "exp of a function": (lambda e: exp(torch.sin, e.z, e.z), "`metric` must be a posthoc_metric.Metric"),
    "log of a function": (lambda e: log(torch.sin, e.z, e.z), "`metric` must be a posthoc_metric.Metric"),
    "mean of a function": (lambda e: frechet_mean(torch.sin, e.z), "`metric` must be a posthoc_metric.Metric"),
    "curvature of a decoder": (lambda e: geometry.curvature(e.net, e.z), "`metric` must be.*PullbackMetric"),
    "transport by a function": (lambda e: geometry.transport(torch.sin, e.z, e.z, e.z), "`metric` must be"),
    "a walk on a function": (lambda e: geometry.random_walk(torch.sin, e.z, steps=1, time=1.0), "`metric` must be"),
    "volume by a function": (lambda e: geometry.volume(torch.sin, e.z[0], e.z[1]), "`metric` must be"),
    "principal geodesics of a function": (
        lambda e: geometry.principal_geodesics(torch.sin, e.z),
        "`metric` must be",
    ),
    "a tolerance in words": (
        lambda e: e.metric.log(e.z[:1], e.z[1:2], rtol="fine"),
        "`rtol` must be a positive number",
    ),
    "audit of what was not repaired": (lambda e: audit(e.metric.decoder_metric), "`repaired` must be what pm.repair"),
    "a time beyond the end": (lambda e: e.solution(1.5), r"`t` must be.*in \[0, 1\]; got float \(1.5"),
    "one frame": (lambda e: e.solution.decode(1), "`num` must be an integer of at least 2"),
    "a velocity for other points": (lambda e: e.metric.exp(e.z, e.z[:2]), "`v` must hold one velocity for each of 60"),
    "the mean of no points": (lambda e: e.metric.mean(e.z[:0]), "`points` must hold at least one point"),
    "weights below zero": (lambda e: e.metric.mean(e.z[:2], weights=[1, -1]), "`weights` must be 2 non-negative"),
    # distances
    "an unknown method": (lambda e: e.metric.distances(e.z[:3], method="fast"), "`method` must be one of auto, solver"),
    "distances of data": (lambda e: e.metric.distances(e.x[:3]), "`a` must have 2 columns"),
    "distances of nothing": (lambda e: e.metric.distances(e.z[:0]), "`a` must hold at least one point"),
    "no jobs": (lambda e: e.metric.distances(e.z[:3], n_jobs=0), "`n_jobs` must be None or an integer other than 0"),
    "a store without a name": (lambda e: e.metric.distances(e.z[:3], store=""), "`store` must be a folder; got str"),
    "a store that is a number": (lambda e: e.metric.distances(e.z[:3], store=3), "`store` must be a folder; got int"),
    "a store that is a file": (
        lambda e: e.metric.distances(e.z[:3], store=e.folder / "w.pt"),
        "`store` must be a folder; '.*w.pt' is a file. Choose another name",
    ),
    "a store below a file": (
        lambda e: e.metric.distances(e.z[:3], store=e.folder / "w.pt" / "parts"),
        "`store` must be a folder; '.*w.pt' is a file. Choose another name",
    ),
    "calibration without a sample": (
        lambda e: e.metric.distances(e.z[:3], calibrate=True, sample=1),
        "`calibrate` needs a `sample` of at least 2",
    ),
    # audit, inversion, mixup
    "an audit of fewer than no pairs": (lambda e: e.metric.audit(pairs=-1), "`pairs` is how many.*at least 0"),
    "an audit's seed as text": (lambda e: e.metric.audit(seed="a"), "`seed` must be an integer"),
    "invert of a raw module": (lambda e: pm.invert(e.net, e.x), "`decoder` must be a wrapped decoder"),
    "invert of latents": (lambda e: pm.invert(e.decoder, e.z), "`data` must have 5 values a row.*got 2"),
    "invert of one row": (lambda e: pm.invert(e.decoder, e.x[0]), r"`data` must have shape \(B, D\).*Add an axis"),
    "invert of NaN": (lambda e: pm.invert(e.decoder, e.broken), "`data` must be finite; row 40"),
    "invert from no starts": (
        lambda e: pm.invert(e.decoder, e.x, starts=0),
        "`starts` is .* integer of at least 1",
    ),
    "a tolerance above one": (lambda e: pm.invert(e.decoder, e.x, tolerance=2), r"`tolerance`.*must lie in \(0, 1\)"),
    "mixup without a decoder": (
        lambda e: pm.geodesic_mixup(pm.FunctionMetric(lambda z: z, 2), e.z, e.classes),
        "`metric` must be a metric with a decoder",
    ),
    "labels of another length": (
        lambda e: pm.geodesic_mixup(e.metric, e.z, e.classes[:3]),
        "`labels` must have one entry",
    ),
    "labels by name": (lambda e: pm.geodesic_mixup(e.metric, e.z, ["cat"] * 60), "`labels` must.*LabelEncoder"),
    "labels below zero": (lambda e: pm.geodesic_mixup(e.metric, e.z, e.classes - 1), "`labels` must be class indices"),
    "partners that are not there": (
        lambda e: pm.geodesic_mixup(e.metric, e.z, e.classes, partners="other"),
        "`labels` must hold a pair.*choose other `partners`",
    ),
    # estimators
    "an estimator of a raw module": (
        lambda e: GeodesicDistance(e.net).fit(e.n),
        "`metric` must be None.*Wrap a module",
    ),
    "an estimator's misspelt method": (
        lambda e: GeodesicDistance(e.metric, method="x").fit(e.n),
        "`method` must be one of",
    ),
    "an estimator of data": (lambda e: GeodesicDistance(e.metric).fit(e.x.numpy()), "`X` must have 2 features"),
    "an estimator of NaN": (
        lambda e: GeodesicDistance(e.metric).fit(e.holed.numpy()),
        "`X` must be finite.*contains NaN",
    ),
    "an estimator of one column": (
        lambda e: GeodesicKMeans(2, e.metric).fit(e.n[:, 0]),
        "`X` must be finite.*2D array",
    ),
    "an estimator that is not fitted": (lambda e: GeodesicKMedoids(2).predict(e.n), "not fitted yet. Call 'fit'"),
    "more clusters than points": (lambda e: GeodesicKMedoids(9, e.metric).fit(e.n[:5]), "`n_clusters` must be at most"),
    "an estimator's random state": (
        lambda e: GeodesicKMeans(2, e.metric, random_state="a").fit(e.n[:5]),
        "`random_state` must be",
    ),
    # plots and report
    "a map of one dimension": (lambda e: plots.latent_plane(e.z[:, :1]), f"{LATENTS} have at least 2 columns"),
    "a map of nothing": (lambda e: plots.latent_plane(e.z[:0]), f"{LATENTS} hold at least 1 point"),
    "a plane through a line": (
        lambda e: plots.latent_plane(torch.rand(9, 3), through=[[0, 0, 0], [1, 1, 1], [2, 2, 2]]),
        "`through` must hold three points that are not on one line",
    ),
    "an unknown quantity": (
        lambda e: plots.evaluate(e.metric, plots.latent_plane(e.z), "volume"),
        "`quantity` must be one of log_volume",
    ),
    "a map of a decoder": (
        lambda e: plots.evaluate(e.decoder, plots.latent_plane(e.z)),
        "`metric` must be.*got Decoder",
    ),
    "a map over latents": (lambda e: plots.evaluate(e.metric, e.z), "`plane` must be what latent_plane"),
    "no fields": (lambda e: plots.shared_norm([]), "`fields` must hold finite values"),
    "a flat field": (
        lambda e: plots.draw_field(plots.new_axes(None), np.zeros(3), plots.latent_plane(e.z)),
        "`field` must be a square",
    ),
    "an image shape of other size": (
        lambda e: write_report(e.folder / "o", e.metric, e.solution, e.solution, None, image_shape=(3, 3)),
        "`image_shape` must be.*5 entries",
    ),
    # saving and loading
    "saving into no folder": (lambda e: e.metric.save(e.folder / "no" / "r"), "cannot write.*Check that the folder"),
    "saving over a folder": (lambda e: e.metric.save(e.folder), "cannot write.*directory"),
    "saving to nowhere": (lambda e: e.metric.save(None), "`path` must be the path of the file to write"),
    "loading what is not there": (lambda e: pm.load(e.folder / "no", e.decoder), "no such file.*`repaired.save"),
    "loading with arguments swapped": (lambda e: pm.load(e.decoder, "r"), r"`path` must.*pm.load\(path, decoder\)"),
    "loading a folder": (lambda e: pm.load(e.folder, e.decoder), "it is a folder.*Pass the file"),
    "loading a checkpoint": (
        lambda e: pm.load(e.folder / "w.pt", e.decoder),
        "not a whole safetensors.*pm.load_decoder",
    ),
    "loading with a raw module": (lambda e: pm.load(e.folder / "r.safetensors", e.net), "`decoder` must be a wrapped"),
    "loading for another decoder": (
        lambda e: pm.load(e.folder / "r.safetensors", linear(2, 5)),
        "fitted on another decoder.*repair this one anew",
    ),
    "loading for another dimension": (
        lambda e: pm.load(e.folder / "r.safetensors", linear(3, 5)),
        "latent dimension 2; `decoder` has 3",
    ),
    "loading with a number as model": (
        lambda e: pm.load(e.folder / "r.safetensors", e.decoder, model=3),
        "`model` must be the class.*from_state",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(e, name):
    call, pattern = MISUSES[name]
    with pytest.raises(PosthocMetricError, match=f"(?s){pattern}") as caught:
        call(e)
    message = str(caught.value)
    assert message.rstrip().endswith((".", ")", "?")) and "Traceback" not in message and len(message) < 700, message


def test_the_table_is_large():
    assert len(MISUSES) + len(COMMANDS) >= 60


DECODER = ("--checkpoint", "w.pt", "--factory", "posthoc_metric.examples:DigitsDecoder")
REPAIR = ("repair", *DECODER, "--latents", "z.npy", "--out", "out")

COMMANDS = {
    "no such command": (("repare",), "No such command 'repare'"),
    "no such option": ((*REPAIR, "--strenght", "3"), "No such option"),
    "an option without its value": (("describe", "--checkpoint"), "requires an argument"),
    "no checkpoint": (("describe",), "Missing option '--checkpoint'"),
    "a checkpoint that is not there": (("describe", "--checkpoint", "no.pt"), "there is no no.pt. Check the spelling"),
    "a checkpoint without its class": (("describe", "--checkpoint", "w.pt"), "Pass --factory,"),
    "a class of other weights": (("describe", *DECODER), "do not fit the module"),
    "a factory that is not there": (
        ("describe", "--checkpoint", "w.pt", "--factory", "no.such:Class"),
        "cannot be imported",
    ),
    "factory arguments that are no JSON": (
        ("describe", *DECODER, "--factory-args", "width=3"),
        "must be a JSON object such as",
    ),
    "a latent dimension of zero": (
        ("describe", "--checkpoint", "script.pt", "--latent-dim", "0"),
        "Invalid value for '--latent-dim'",
    ),
    "an unknown uncertainty": ((*REPAIR, "--uncertainty", "rfb"), "'rfb' is not one of 'rbf', 'gp', 'rbf-published'"),
    "a knob that is no number": ((*REPAIR, "--inflation", "ten"), "Invalid value for '--inflation'"),
    "latents that are not there": (("--latents", "no.npy"), "`--latents` must be a file; 'no.npy' does not exist"),
    "latents of an unknown kind": (("--latents", "text.txt"), "`--latents` must be a file that ends in .npy"),
    "data as latents": (("--latents", "x.npy"), "`--latents` must have 2 columns"),
    "latents as data": (("--latents", "z.npy", "--data", "z.npy"), "`--data` must have 5 values a row"),
    "a metric that is not there": (("audit", "nowhere", "--checkpoint", "script.pt"), "'nowhere': no such file"),
    "a checkpoint as metric": (("audit", "w.pt", "--checkpoint", "script.pt"), "not a whole safetensors file"),
    "a row beyond the last": (
        ("geodesic", "r.safetensors", "--checkpoint", "script.pt", "--from", "0", "--to", "60"),
        "`--to` must be a row from 0 to 59; got 60",
    ),
    "more starts than ends": (
        ("geodesic", "r.safetensors", "--checkpoint", "script.pt", "--from", "0", "--from", "1", "--to", "2"),
        "equally often; got 2 and 1",
    ),
    "an unknown method of distances": (
        ("distances", "r.safetensors", "--checkpoint", "script.pt", "--out", "d.npy", "--by", "magic"),
        "'magic' is not one of",
    ),
    "a matrix into no folder": (
        ("distances", "r.safetensors", "--checkpoint", "script.pt", "--most", "2", "--out", "no/d.npy"),
        "cannot write 'no/d.npy': No such file or directory",
    ),
    "an image shape in words": (
        ("report", "r.safetensors", "--checkpoint", "script.pt", "--out", "rep", "--image-shape", "big"),
        "must read like 28x28",
    ),
    "a report into a file": (
        ("report", "r.safetensors", "--checkpoint", "script.pt", "--out", "text.txt"),
        "`--out` must be a folder; 'text.txt' is a file",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_misuse_of_the_command_line(e, name, monkeypatch):
    arguments, words = COMMANDS[name]
    if arguments[0].startswith("--"):
        arguments = ("repair", "--checkpoint", "script.pt", *arguments, "--out", "out")
    monkeypatch.chdir(e.folder)
    before = sorted(path.name for path in e.folder.iterdir())
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "300", "TERM": "dumb"})
    text = " ".join(done.output.replace("│", " ").split())
    assert done.exit_code == 2 and words in text and "Traceback" not in text, text
    assert sorted(path.name for path in e.folder.iterdir()) == before


class TestDisks:
    """A full disk and a folder that cannot be written: one message, and nothing half-written."""

    @pytest.fixture
    def full(self, monkeypatch):
        def no_space(*arguments, **options):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return lambda where: monkeypatch.setattr(where, no_space)

    @pytest.mark.parametrize("where", ["os.fdopen", "os.replace", "tempfile.mkstemp"])
    def test_saving_on_a_full_disk(self, e, tmp_path, full, where):
        (tmp_path / "r").write_bytes(b"before")
        full(where)
        with pytest.raises(OutputError, match="cannot write.*No space left on device.*Check"):
            e.metric.save(tmp_path / "r")
        assert [path.name for path in tmp_path.iterdir()] == ["r"] and (tmp_path / "r").read_bytes() == b"before"

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
    def test_a_real_full_device(self, e, tmp_path, monkeypatch):
        opened = os.fdopen
        monkeypatch.setattr(os, "fdopen", lambda handle, mode: (os.close(handle), open("/dev/full", mode))[1])  # noqa: SIM115
        with pytest.raises(OutputError, match="No space left on device"):
            e.metric.save(tmp_path / "r")
        monkeypatch.setattr(os, "fdopen", opened)
        assert not list(tmp_path.iterdir())

    def test_a_store_on_a_full_disk(self, e, tmp_path, full):
        full("numpy.lib.format.open_memmap")
        with pytest.raises(OutputError, match="`store` cannot be written.*No space left"):
            e.metric.distances(e.z[:3], store=tmp_path / "s")

    def test_a_report_on_a_full_disk(self, e, tmp_path, full, monkeypatch):
        monkeypatch.chdir(e.folder)
        full("tempfile.mkdtemp")
        arguments = ["report", "r.safetensors", "--checkpoint", "script.pt", "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 2 and "No space left on device" in " ".join(done.output.split())
        assert not list(tmp_path.iterdir())

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_folder_that_cannot_be_written(self, e, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError, match="cannot write.*Permission denied"):
            e.metric.save(tmp_path / "r")


class Held(nn.Module):
    """A module whose width no layer tells, and which holds it as an attribute."""

    def __init__(self, net, latent_dim):
        super().__init__()
        self.held = [net]
        self.latent_dim = latent_dim

    def forward(self, z):
        return self.held[0](z)


class View(np.ndarray):
    """Rows of an AnnData that was subset: an array, with methods of a sparse table."""

    def toarray(self):
        return np.array(self)


def table_of(e):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    return pandas.DataFrame({"one": e.n[:, 0], "two": e.n[:, 1]})


def one_dimensional():
    decoder = pm.Decoder(lambda z: torch.cat([torch.sin(z), torch.cos(z), z], dim=1), latent_dim=1)
    z = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return pm.repair(decoder, z), z


#: what looks odd and is right: a call, and what its result must satisfy
WORKS = {
    "lists": (
        lambda e: e.decoder([[0, 1], [2, 3]]),
        lambda e, out: isinstance(out, np.ndarray) and out.shape == (2, 5),
    ),
    "integers": (lambda e: e.decoder(torch.tensor([[0, 1]])), lambda e, out: out.dtype == torch.float32),
    "half precision": (
        lambda e: e.metric.geodesic(e.z[:2].half(), e.z[2:4].half()).length,
        lambda e, out: out.dtype == torch.float16 and torch.isfinite(out).all(),
    ),
    "bfloat16": (lambda e: e.decoder(e.z.bfloat16()), lambda e, out: out.dtype == torch.bfloat16),
    "no rows": (lambda e: e.decoder(e.z[:0]), lambda e, out: out.shape == (0, 5)),
    "no pairs": (lambda e: e.metric.geodesic(e.z[:0], e.z[:0]), lambda e, out: len(out) == 0 and len(out.length) == 0),
    "read-only arrays": (
        lambda e: e.decoder(np.broadcast_to(e.n[:1], (4, 2))),
        lambda e, out: np.allclose(out, e.decoder(e.n[:1]), atol=1e-6),
    ),
    "arrays backwards": (
        lambda e: e.decoder(e.n[::-1]),
        lambda e, out: np.allclose(out[::-1], e.decoder(e.n), atol=1e-6),
    ),
    "Fortran order": (
        lambda e: e.decoder(np.asfortranarray(e.n)),
        lambda e, out: np.allclose(out, e.x.numpy(), atol=1e-6),
    ),
    "other byte order": (
        lambda e: e.decoder(e.n.astype(">f4")),
        lambda e, out: np.allclose(out, e.x.numpy(), atol=1e-6) and out.dtype == np.float32,
    ),
    "long doubles": (lambda e: e.decoder(e.n.astype(np.longdouble)), lambda e, out: out.dtype == np.float64),
    "unsigned integers": (lambda e: e.decoder(np.ones((2, 2), np.uint16)), lambda e, out: out.shape == (2, 5)),
    "a data frame": (lambda e: e.decoder(table_of(e)), lambda e, out: np.allclose(out, e.x.numpy(), atol=1e-6)),
    "a view of an annotated table": (
        lambda e: pm.repair(e.decoder, e.n.view(View), e.x.numpy().view(View)).mean(e.n[:3].view(View)),
        lambda e, out: type(out) is np.ndarray and np.isfinite(out).all(),
    ),
    "tensors that require gradients": (
        lambda e: e.decoder(e.z.clone().requires_grad_()),
        lambda e, out: not out.requires_grad,
    ),
    "float64 latents of a float32 decoder": (
        lambda e: e.decoder(e.z.double()),
        lambda e, out: out.dtype == torch.float64,
    ),
    "latents in triplicate": (
        lambda e: pm.repair(e.decoder, e.z.repeat(3, 1), e.x.repeat(3, 1)).condition_number(e.z),
        lambda e, out: torch.isfinite(out).all(),
    ),
    "yes-or-no data": (lambda e: pm.repair(e.decoder, e.z, e.x > 0), lambda e, out: out.dim == 2),
    "data as images": (lambda e: pm.repair(e.decoder, e.z, e.x[:, None, :, None]), lambda e, out: out.dim == 2),
    "a single pair": (lambda e: e.metric.geodesic(e.z[:1], e.z[1:2]), lambda e, out: len(out) == 1 and out.length > 0),
    "a pair of one point": (
        lambda e: e.metric.geodesic(e.z[:1], e.z[:1]),
        lambda e, out: float(out.length[0]) == 0.0 and bool(out.converged[0]),
    ),
    "distances of one point": (lambda e: e.metric.distances(e.z[:1]), lambda e, out: out.tolist() == [[0.0]]),
    "distances of a point to itself twice": (
        lambda e: e.metric.distances(e.z[[0, 0, 1]]),
        lambda e, out: float(out[0, 1]) == 0.0 and torch.equal(out[0], out[1]),
    ),
    "one latent dimension": (
        lambda e: one_dimensional()[0].geodesic([[-0.5]], [[0.75]]),
        lambda e, out: out.converged.all() and abs(float(out.length[0]) - 1.25 * 2**0.5) < 2e-2,
    ),
    "distances in one dimension": (
        lambda e: one_dimensional()[0].distances(one_dimensional()[1][:4]),
        lambda e, out: torch.isfinite(out).all() and torch.equal(out, out.T),
    ),
    "an audit in one dimension": (lambda e: one_dimensional()[0].audit(pairs=3), lambda e, out: len(out.criteria) == 9),
    "an audit without geodesics": (lambda e: e.metric.audit(pairs=0), lambda e, out: out.faithfulness is None),
    "clusters of equal points": (
        lambda e: GeodesicKMedoids(2, e.metric, random_state=0).fit(np.repeat(e.n[:2], 4, axis=0)).labels_,
        lambda e, out: len(set(out[:4])) == len(set(out[4:])) == 1,
    ),
    "a NumPy seed": (lambda e: pm.repair(e.decoder, e.z, e.x, seed=np.int64(0)), lambda e, out: out.geometry.seed == 0),
    "a NumPy latent dimension": (
        lambda e: pm.Decoder(e.net, latent_dim=np.int64(2), max_bytes=np.int32(2**20)),
        lambda e, out: type(out.latent_dim) is int and type(out.max_bytes) is int,
    ),
    "a NumPy latent shape": (
        lambda e: pm.Decoder(e.net, latent_shape=(np.int64(2),)),
        lambda e, out: out.latent_dim == 2,
    ),
    "a latent dimension that a model holds in NumPy": (
        lambda e: pm.Decoder(Held(e.net, np.int64(2))),
        lambda e, out: type(out.latent_dim) is int and out.latent_dim == 2,
    ),
    "NumPy counts of an inversion": (
        lambda e: pm.invert(e.decoder, e.x[:3], starts=np.int64(64), tries=np.int32(2), max_steps=np.int64(9)),
        lambda e, out: out.latents.shape == (3, 2),
    ),
    "NumPy jobs": (
        lambda e: e.metric.distances(e.z[:3], n_jobs=np.int64(1)),
        lambda e, out: torch.equal(out, e.metric.distances(e.z[:3])),
    ),
    "more NumPy jobs": (
        lambda e: e.metric.distances(e.z[:3], n_jobs=np.int64(2)),
        lambda e, out: torch.equal(out, e.metric.distances(e.z[:3])),
    ),
    "invert of no rows": (lambda e: pm.invert(e.decoder, e.x[:0]), lambda e, out: out.latents.shape == (0, 2)),
    "a point far outside": (
        lambda e: e.metric.condition_number(1e6 * e.z[:3]),
        lambda e, out: ((out >= 1) & (out < 10)).all(),
    ),
}


@pytest.mark.parametrize("name", WORKS)
def test_what_looks_odd_and_is_right(e, name):
    call, right = WORKS[name]
    assert bool(right(e, call(e)))


def test_nothing_of_the_caller_is_changed(e):
    before = e.z.clone(), e.x.clone(), e.n.copy()
    e.metric.geodesic(e.z[:3], e.z[3:6])
    e.decoder.jvp(e.z, e.z)
    e.decoder(e.n)
    assert torch.equal(e.z, before[0]) and torch.equal(e.x, before[1]) and (e.n == before[2]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_share_their_memory_are_rows_like_others(dtype):
    """One point expanded over a batch is how users ask for many directions at it."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).to(dtype)
    decoder = pm.Decoder(module, latent_dim=2)
    metric = pm.PullbackMetric(decoder)
    one, many = torch.randn(1, 2, dtype=dtype).expand(4, -1), torch.randn(4, 2, dtype=dtype)
    for z, v in ((one, many), (many, one), (one, one)):
        own = z.clone(), v.clone()
        assert metric.norm(z, v).equal(metric.norm(*own))
        for got, wanted in zip(decoder.jvp(z, v), decoder.jvp(*own), strict=True):
            assert got.equal(wanted)
        assert metric.geodesic(z, v).length.equal(metric.geodesic(*own).length)
