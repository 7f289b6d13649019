"""What is said of long waits; by a clock that the tests set."""

import warnings

import pytest
from test_spaces import points

from posthoc_metric.distances import distances, neighbours
from posthoc_metric.distances.forecast import Forecast, forecasts
from posthoc_metric.errors import PosthocMetricWarning
from posthoc_metric.parallel import Progress, blocks
from posthoc_metric.spaces import Sphere

REMEDIES = {"long": "Take less"}


def stage(count, seconds, workers=1, name="long"):
    """What is said of a stage of so many blocks."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        told = Forecast(Progress(), REMEDIES, workers)
        told.begin(name, count + 2, 2)
        for _ in range(count):
            told.advance(seconds)
        told.close()
    assert told.seconds == {name: [seconds] * count}
    return [str(warning.message) for warning in said]


def test_the_first_block_tells_what_the_others_take_and_it_is_said_once():
    (words,) = stage(61, 60.0)
    assert "'long'" in words and "about 60 minutes" in words and "Take less" in words
    assert "15 minutes" in stage(61, 60.0, workers=4)[0]
    assert "about 17 hours" in stage(1001, 60.0)[0]


@pytest.mark.parametrize(
    "count, seconds, workers, name", [(100, 1.0, 1, "long"), (5, 100.0, 8, "long"), (9, 1e4, 1, "?")]
)
def test_nothing_is_said_of_short_waits_nor_of_stages_without_a_remedy(count, seconds, workers, name):
    assert stage(count, seconds, workers, name) == []


def test_a_first_block_that_is_long_itself_is_spoken_of():
    told = Forecast(Progress(), REMEDIES, 2)
    told.begin("long", 90)
    with pytest.warns(PosthocMetricWarning, match="at least 90 minutes"):
        told.overdue()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told.advance(600.0)
    told.close()


def test_no_clock_runs_on_after_the_work():
    with pytest.raises(KeyError), forecasts(False, REMEDIES, None) as told:
        told.begin("long", 3)
        timer = told._timer
        assert timer.daemon and not timer.finished.is_set()
        raise KeyError
    assert timer.finished.is_set()


@pytest.mark.parametrize(
    "call, stages",
    [
        (lambda: distances(Sphere(), points(13, 2)), {"pairs": "method='graph'"}),
        (
            lambda: distances(Sphere(), points(130, 2), method="graph", neighbours=129, sample=65, refine=1),
            {"edges": "`neighbours`", "sample": "`sample`", "refined": "`refine`"},
        ),
        (
            lambda: neighbours(Sphere(), points(130, 2), 1, graph_neighbours=129, sample=65, refine=True),
            {"edges": "`graph_neighbours`", "sample": "`sample`", "refined": "`refine=False`"},
        ),
    ],
)
def test_slow_metrics_are_told_of_stage_by_stage_with_the_same_result(call, stages, monkeypatch):
    before = call()
    ticks = iter(range(0, 10**9, 500))
    monkeypatch.setattr(blocks.time, "perf_counter", lambda: next(ticks))
    with pytest.warns(PosthocMetricWarning) as said:
        after = call()
    words = {str(warning.message).split("'")[1]: str(warning.message) for warning in said}
    assert set(stages) == set(words) and len(said) == len(words)
    assert all(remedy in words[name] and "minutes" in words[name] for name, remedy in stages.items())
    assert abs(before - after).max() == 0
