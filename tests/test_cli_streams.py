"""Standard output that cannot take the text: no traceback, and not the exit code of a result that is not good."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from posthoc_metric.cli import terminal
from posthoc_metric.cli.streams import standard_streams
from posthoc_metric.examples import digits_vae

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")


@pytest.fixture(scope="module")
def describe(tmp_path_factory):
    """Runs ``describe`` in a process of its own, with what a shell is to do with its streams."""
    folder = tmp_path_factory.mktemp("streams")
    torch.save(digits_vae()[0].state_dict(), folder / "decoder.pt")
    entry = Path(__file__).parent.parent / "posthoc_metric_command.py"
    named = ("--checkpoint", "decoder.pt", "--factory", "posthoc_metric.examples:DigitsDecoder")

    def run(*arguments, streams="", unbuffered=""):
        command = shlex.join([sys.executable, str(entry), "describe", *named, *arguments])
        done = subprocess.run(
            ["bash", "-c", f"{command} {streams}"],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONIOENCODING": "ascii", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@needs_full
@pytest.mark.parametrize(("arguments", "unbuffered"), [((), ""), (("--json",), "1"), (("--help",), "1")])
def test_a_full_device_is_a_mistake_that_is_told_once(describe, arguments, unbuffered):
    done = describe(*arguments, streams="> /dev/full", unbuffered=unbuffered)
    assert done.returncode == 2
    assert done.stderr.count("Error: cannot write to standard output: No space left on device. Free space") == 1


@pytest.mark.parametrize("streams", [">&-", "2>&-", pytest.param("2> /dev/full", marks=needs_full)])
def test_a_result_is_one_without_a_stream_to_tell_it(describe, streams):
    done = describe(streams=streams)
    assert done.returncode == 0 and done.stderr == ""
    assert ("J^Tu by reverse-mode AD" in done.stdout) == (streams != ">&-")


def test_nobody_is_told_that_the_reader_left(describe):
    done = describe(streams="| exec true; exit ${PIPESTATUS[0]}", unbuffered="1")
    assert (done.returncode, done.stderr) == (141, "")


@pytest.fixture
def said(monkeypatch):
    """What is written of a text, in an encoding."""

    def written(say, encoding):
        buffer = io.BytesIO()
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
        with standard_streams():
            say()
        return buffer.getvalue().decode(encoding)

    return written


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("κ(J) ≤ 1\u202f000 ± 2.5 × 10⁻⁴", "utf-8", "κ(J) ≤ 1\u202f000 ± 2.5 × 10⁻⁴"),
        ("κ(J) ≤ 1\u202f000 ± 2.5 × 10⁻⁴", "ascii", "kappa(J) <= 1 000 +- 2.5 x 10^-4"),
        ("κ(J) ≤ 1\u202f000 ± 2.5 × 10⁻³", "latin-1", "kappa(J) <= 1 000 ± 2.5 × 10^-³"),
        ("Jᵀu, −∞ – ½", "cp1252", "J^Tu, -inf – ½"),
        ("größer, \U0001f600", "ascii", "gr\\xf6\\xdfer, \\U0001f600"),
    ],
)
def test_characters_that_an_encoding_lacks_are_written_in_others(said, text, encoding, expected):
    assert said(lambda: sys.stdout.write(text), encoding) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_json_can_be_read_in_every_encoding(said, encoding):
    facts = {"title": "κ größer ≤ \U0001f600", "file": "undecodable \udcff"}
    assert json.loads(said(lambda: terminal.show_json(facts), encoding)) == facts
    plain = {"title": "größer"}
    assert ("ö" in said(lambda: terminal.show_json(plain), encoding)) == (encoding != "ascii")
