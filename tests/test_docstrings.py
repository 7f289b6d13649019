"""What docstrings show is what happens."""

import doctest
import inspect

import pytest

import posthoc_metric as pm
from posthoc_metric import estimators

PUBLIC = {name: getattr(module, name) for module in (pm, estimators) for name in module.__all__}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name):
    assert len(inspect.getdoc(PUBLIC[name]).splitlines()[0]) > 20


@pytest.mark.parametrize("name", [name for name, item in PUBLIC.items() if ">>>" in (item.__doc__ or "")])
def test_examples_run_as_they_are_written(name):
    (example,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={})
    said: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert found.attempted > 0 and not found.failed, "".join(said)
