"""The benchmark scripts run, in their smallest form; what they measure is nobody's test."""

import pytest
import torch
from test_spaces import points, upper

from posthoc_metric.metric import FunctionMetric
from posthoc_metric.spaces import HalfPlane, SwissRoll, Torus


@pytest.mark.parametrize("space", [HalfPlane(), SwissRoll()])
def test_georce_finds_closed_form_distances(scripts, space):
    from georce import georce
    from peers import curve_lengths

    a, b = (upper(10), upper(10, seed=1)) if isinstance(space, HalfPlane) else (6 + points(10, 2), 8 + points(10, 2, 1))
    nodes, converged, steps = georce(space, a, b)
    assert converged.all() and int(steps.max()) > 0
    torch.testing.assert_close(curve_lengths(space, nodes), space.distance(a, b), rtol=1e-3, atol=0)


def test_georce_does_the_same_by_embedding_and_by_tensor(scripts):
    from georce import georce

    torus = Torus()
    a, b = points(5, 2), 1 + points(5, 2, 1)
    one, two = georce(torus, a, b)[0], georce(FunctionMetric(torus.tensor, 2), a, b)[0]
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


def test_closed_forms(scripts, capsys):
    import closed_forms

    closed_forms.main(3, 1)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("GEORCE", "fixed-point", "stochman", "torus"))


def test_folds(scripts, capsys):
    import folds

    folds.main(3, "2 joints")
    shown = capsys.readouterr().out
    assert "arm, 2 joints, plane" in shown and "random" not in shown


def test_mlp_and_wall(scripts, capsys):
    import mlp
    import wall

    mlp.main(3, 1, side=30, most=1, epochs=2)
    wall.main(3, side=30, spans=64, fixed_steps=5, epochs=2)
    shown = capsys.readouterr().out
    assert "evaluations a pair" in shown and "of those said so" in shown


def test_scaling_and_time_shares(scripts, capsys):
    import scaling
    import time_shares

    found = [scaling.one(number, 16, 2, 2) for number in (2, 4)]
    assert found[1]["seconds"] > 0 and found[1]["evaluations"] > 0
    assert "time grows as B^" in scaling.block("B", (2, 4), found)
    time_shares.main(3, (2,), epochs=2)
    assert "decoder" in capsys.readouterr().out


def test_uncertainty_costs(scripts, capsys):
    import uncertainty_costs

    uncertainty_costs.main(300, 1, 100)
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("rbf, K = 64", "gp", "rbf-published"))
