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
    assert torch.isnan(HalfPlane().distance(torch.tensor([[0.0, -1.0]]), torch.tensor([[0.0, -2.0]]))).all()


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
        (lambda: Plane([[1.0, 0.0], [1.0]]), "`matrix` must be a tensor"),
        (lambda: Plane([[float("nan"), 0.0], [0.0, 1.0]]), "`matrix` must be finite"),
        (lambda: Plane(np.zeros((0, 0))), "`matrix` must have shape"),
        (lambda: Plane("matrix"), "`matrix` must be a tensor"),
        (lambda: Plane(dim=0), "`dim`.*at least 1"),
        (lambda: Sphere(0), "`dim`.*at least 1"),
        (lambda: Sphere(2.0), "`dim`.*at least 1"),
        (lambda: Sphere(2, -1.0), "`radius`"),
        (lambda: Sphere(2, 0.0), "`radius`"),
        (lambda: Sphere(2, float("nan")), "`radius`"),
        (lambda: Sphere(2, "1 m"), "`radius`"),
        (lambda: HalfPlane(-1), "`dim`.*at least 1"),
        (lambda: HalfPlane("2"), "`dim`.*at least 1"),
        (lambda: LinearDecoder(np.zeros((3, 0))), "shape"),
        (lambda: LinearDecoder([[float("inf")]]), "finite"),
        (lambda: Torus(1.0, 2.0), "exceed"),
        (lambda: Torus(float("inf"), 2.0), "`radius`"),
        (lambda: Torus(2.0, "thin"), "`tube`"),
        (lambda: Torus(2.0, -1.0), "`tube`"),
        (lambda: Sphere().distance(torch.zeros(2, 2), torch.zeros(3, 2)), "rows"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(InvalidArgumentError, match=words):
        make()


def test_dimensions_may_be_numpy_s():
    for space in (Sphere(np.int64(3)), HalfPlane(np.int32(3)), Plane(dim=np.int64(3))):
        assert type(space.dim) is int and space.distance(np.ones((1, 3)), np.ones((1, 3)))[0] == 0


def test_a_line_is_a_half_plane_of_one_dimension():
    assert HalfPlane(1).distance(np.array([[1.0]]), np.array([[np.e]]))[0] == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [Plane, LinearDecoder])
def test_a_matrix_is_nobody_else_s(kind):
    for given in (np.eye(2), torch.eye(2, dtype=torch.float64)):
        space = kind(given)
        given[0, 0] = 9.0
        assert float(space.norm(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))) == 1.0
        space.matrix[1, 1] = 5.0
        assert given[1, 1] == 1.0
