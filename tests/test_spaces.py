"""The closed-form metrics against each other's definitions and against finite differences."""

import numpy as np
import pytest
import torch

from posthoc_metric.errors import InvalidArgumentError
from posthoc_metric.spaces import HalfPlane, LinearDecoder, Plane, Sphere, SwissRoll, Torus


def points(count, dim, seed=0, scale=0.5):
    return scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def upper(count, dim=2, seed=0):
    z = points(count, dim, seed)
    z[:, -1] = z[:, -1].exp()
    return z


SPACES = {
    "plane": (Plane([[2.0, 0.5], [0.5, 1.0]]), points(8, 2)),
    "sphere": (Sphere(), points(8, 2)),
    "sphere of dimension 5, radius 3": (Sphere(5, 3.0), points(8, 5)),
    "half-plane": (HalfPlane(), upper(8)),
    "half-space": (HalfPlane(4), upper(8, 4)),
    "linear decoder": (LinearDecoder(points(7, 3, seed=1)), points(8, 3)),
    "Swiss roll": (SwissRoll(), 6 + points(8, 2)),
}


@pytest.mark.parametrize("name", SPACES)
def test_short_distances_are_the_metric(name):
    space, z = SPACES[name]
    step = 1e-5 * points(len(z), space.dim, seed=3)
    middle = z + step / 2
    torch.testing.assert_close(space.distance(z, z + step), space.norm(middle, step), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SPACES)
def test_distance_is_symmetric_and_obeys_the_triangle_inequality(name):
    space, z = SPACES[name]
    a, b, c = z, z.roll(1, 0), z.roll(2, 0)
    torch.testing.assert_close(space.distance(a, b), space.distance(b, a))
    assert (space.distance(a, c) <= space.distance(a, b) + space.distance(b, c) + 1e-12).all()


@pytest.mark.parametrize("space", [SwissRoll(), Torus()])
def test_derivative_of_an_embedding_is_its_derivative(space):
    z = 5 + points(6, 2)
    exact = torch.func.vmap(torch.func.jacrev(lambda x: space.embedding.value(x[None])[0]))(z)
    torch.testing.assert_close(space.embedding.derivative(z), exact)


def test_half_plane_has_no_metric_below():
    assert torch.isnan(HalfPlane().tensor(torch.tensor([[0.0, -1.0]]))).any()


def test_kind_and_dtype_come_back():
    z = np.zeros((3, 2), dtype=np.float32)
    assert Sphere().tensor(z).dtype == np.float32
    assert Sphere().distance(z, z + 1).dtype == np.float32


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Plane([[1.0, 0.0]]), "square"),
        (lambda: Plane([[1.0, 0.0], [0.0, -1.0]]), "positive definite"),
        (lambda: LinearDecoder([1.0]), "shape"),
        (lambda: Torus(1.0, 2.0), "exceed"),
        (lambda: Sphere().distance(torch.zeros(2, 2), torch.zeros(3, 2)), "rows"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        make()
