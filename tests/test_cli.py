"""Every command as a user runs it, and what a user's mistakes look like."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse
import torch
import typer
from typer.testing import CliRunner

import posthoc_metric
from posthoc_metric.arrays_io import read_array, read_named
from posthoc_metric.cli import commands as commands_module
from posthoc_metric.cli import demo as demo_module
from posthoc_metric.cli.main import COMMANDS, app
from posthoc_metric.cli.shared import npy, packed, points_of
from posthoc_metric.cli.terminal import as_options, clear_errors, show_table
from posthoc_metric.distances.forecast import MATRIX
from posthoc_metric.errors import CheckpointError, InvalidArgumentError, MissingExtraError
from posthoc_metric.examples import digits, digits_vae
from posthoc_metric.geodesic.status import Status
from posthoc_metric.output import write_file

REPORT_FILES = {"report.html", "audit.json", "geodesics.npz", "maps.png", "geodesics.png", "profile.png", "audit.png"}


def run(*arguments, cwd):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "posthoc_metric.cli.main", *map(str, arguments)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # two run side by side
    return subprocess.run(command, cwd=cwd, env=one_thread, capture_output=True, text=True, timeout=300)


def mistake(*arguments):
    """The one message that a mistake ends in."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return " ".join(done.output.replace("│", " ").split())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, latents and data, and what ``repair`` makes of them."""
    folder = tmp_path_factory.mktemp("cli")
    module, encoder = digits_vae()
    data = digits().data[:400]
    torch.save(module.state_dict(), folder / "decoder.pt")
    np.save(folder / "latents.npy", encoder(data).numpy())
    np.savez(folder / "data.npz", images=data.numpy(), other=np.zeros(3))
    done = run("repair", *DECODER, "--latents", "latents.npy", "--data", "data.npz:images", "--out", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "R^2 -> R^64 from 400 latents" in done.stdout
    return folder


DECODER = ("--checkpoint", "decoder.pt", "--factory", "posthoc_metric.examples:DigitsDecoder")


@pytest.fixture(scope="module")
def done(place):
    """Every other command, each in a process of its own, two side by side."""
    jobs = {
        "demo": ("demo", "--pairs", 3),
        "report": ("report", "out", *DECODER, "--pairs", 2, "--out", "report", "--json"),
        "audit": ("audit", "out", *DECODER, "--data", "data.npz:images", "--pairs", 2, "--json"),
        "geodesic": ("geodesic", "out", *DECODER, "--from", 3, "--to", 17, "--from", "0.5,-0.25", "--to", "-1,0.5",
                     "--out", "curves.npz", "--json"),
        "distances": ("distances", "out", *DECODER, "--points", "latents.npy", "--most", 4, "--out", "m.npy",
                      "--store", "store"),
        "describe": ("describe", *DECODER, "--json"),
    }  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(jobs, pool.map(lambda job: run(*job, cwd=place), jobs.values()), strict=True))


class TestCommands:
    def test_repair_saves_what_it_was_asked_for(self, place):
        assert {path.name for path in (place / "out").iterdir()} == {"repaired.safetensors", "repair.json"}
        facts = json.loads((place / "out" / "repair.json").read_text())
        assert (facts["latents"], facts["uncertainty"], facts["inflation"]) == (400, "rbf", 10.0)

    def test_every_command_was_run(self, done):
        assert {*done, "repair"} == {command.__name__ for command in COMMANDS}

    def test_audit(self, done):
        found = json.loads(done["audit"].stdout)
        assert done["audit"].returncode == (0 if found["passed"] else 1), done["audit"].stderr
        smoothness = next(row for row in found["criteria"] if row["name"] == "smoothness")
        assert smoothness["passed"] is not None and smoothness["bound"] is not None  # the data were used

    def test_a_path_is_told_as_it_is(self, place, tmp_path):
        """Rich reads square brackets as markup, and :cat: as a picture."""
        out = tmp_path / "run [b]:cat: a[/b]"
        out.mkdir(parents=True)
        arguments = ("repair", *absolute(place), "--latents", place / "latents.npy", "--out", out)
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 0, done.output
        assert f"saved {out / 'repaired.safetensors'}. See" in done.output
        words = shlex.split(done.output)
        assert words[words.index("posthoc-metric") + 1 :][:2] == ["audit", str(out)]
        arguments = ("distances", out, *absolute(place), "--most", "2", "--out", out / "d[bold].npy")
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert f"distances to {out / 'd[bold].npy'}, by" in done.output

    def test_geodesic_by_row_and_by_coordinates(self, place, done):
        pairs = json.loads(done["geodesic"].stdout)["pairs"]
        converged = all(pair["status"] == "CONVERGED" for pair in pairs)
        assert done["geodesic"].returncode == (0 if converged else 1), done["geodesic"].stderr
        latents = np.load(place / "latents.npy")
        with np.load(place / "curves.npz") as curves:
            assert np.allclose(curves["points"][0, [0, -1]], latents[[3, 17]])
            assert np.allclose(curves["points"][1, [0, -1]], [[0.5, -0.25], [-1, 0.5]])
            assert curves["length"].tolist() == [pair["length"] for pair in pairs]
            assert curves["status"].tolist() == [pair["status"] for pair in pairs]

    def test_distances(self, place, done):
        assert done["distances"].returncode in (0, 1), done["distances"].stderr
        assert "4 x 4 distances" in done["distances"].stdout
        matrix = np.load(place / "m.npy")
        assert matrix.shape == (4, 4) and np.allclose(matrix, matrix.T) and (np.diag(matrix) == 0).all()
        # what is stored is gone on from, and is of these points
        common = ("distances", place / "out", *absolute(place), "--store", place / "store", "--out", place / "n.npy")
        again = CliRunner().invoke(app, [*map(str, common), "--points", str(place / "latents.npy"), "--most", "4"])
        assert again.exit_code == done["distances"].returncode, again.output
        assert (np.load(place / "n.npy") == matrix).all()
        assert "another computation" in mistake(*common, "--points", place / "latents.npy", "--most", "3")

    def test_report(self, place, done):
        passed = json.loads(done["report"].stdout)["passed"]
        assert done["report"].returncode == (0 if passed else 1), done["report"].stderr
        assert {path.name for path in (place / "report").iterdir()} == REPORT_FILES
        assert json.loads((place / "report" / "audit.json").read_text()) == json.loads(done["report"].stdout)

    def test_describe(self, done):
        assert done["describe"].returncode == 0, done["describe"].stderr
        found = json.loads(done["describe"].stdout)
        assert (found["latent_dim"], found["output_dim"]) == (2, 64)
        assert "forward-mode" in found["description"]

    def test_demo(self, place, done):
        out = place / "posthoc-metric-demo"
        facts = json.loads((out / "audit.json").read_text())
        assert done["demo"].returncode == (0 if facts["passed"] else 1), done["demo"].stderr
        assert {path.name for path in out.iterdir()} == REPORT_FILES | {"frames.png"}
        assert facts["geodesics"]["pairs"] == 3 and facts["settings"]["latents"] == 1797
        assert "report.html" in done["demo"].stdout and len(done["demo"].stdout.splitlines()) < 25


WITH_ENCODER = """
import torch
class WithEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.recognition = torch.nn.Linear(7, 2)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 9), torch.nn.Tanh(), torch.nn.Linear(9, 7))
    def forward(self, z):
        return self.net(z)
"""


def test_the_latents_tell_the_latent_dimension_where_the_model_misleads(tmp_path, monkeypatch):
    """Its first layer is the encoder's, and takes the data."""
    (tmp_path / "misleading_module.py").write_text(WITH_ENCODER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    scope: dict = {}
    exec(WITH_ENCODER, scope)
    torch.save(scope["WithEncoder"]().state_dict(), "w.pt")
    np.save("z.npy", np.random.default_rng(0).normal(size=(300, 2)))
    named = ("--checkpoint", "w.pt", "--factory", "misleading_module:WithEncoder")
    assert "Check --latent-dim;" in mistake("describe", *named)
    for command in (("repair", "--latents", "z.npy", "--out", "out"), ("geodesic", "out", "--from", "3", "--to", "5")):
        done = CliRunner().invoke(app, [*command, *named])
        assert done.exit_code == 0, done.output
    np.save("three.npy", np.zeros((300, 3)))
    assert "latent dimension tried: 7" in mistake("repair", *named, "--latents", "three.npy", "--out", "other")


def test_stopping_the_demo_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args, **options):
        (tmp_path / "reached").touch()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        pytest.fail("the signal was ignored")

    monkeypatch.setattr(demo_module, "repair", interrupted)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "new" / "out")])
    assert done.exit_code == 130 and "Traceback" not in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["reached"]


def test_ctrl_c_during_the_imports_is_one_line(tmp_path):
    # whoever runs the tests in the background may have told them to ignore the signal
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    interrupted = f"import os, signal, time\n{heard}\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n"
    (tmp_path / "torch.py").write_text(interrupted)
    entry = Path(__file__).parent.parent / "posthoc_metric_command.py"
    done = subprocess.run(
        [sys.executable, entry, "--help"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{entry.parent}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Stopped.\n")


def test_ctrl_c_within_torch_as_it_is_imported_does_not_abort(tmp_path):
    """C++ that meets Python's exception where it cannot pass it on ends the process with a dump."""
    caught = "os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\nexcept KeyboardInterrupt:\n    os.abort()\n"
    (tmp_path / "torch.py").write_text(f"import os, signal, time\ntry:\n    {caught}")
    entry = Path(__file__).parent.parent / "posthoc_metric_command.py"
    heard = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    done = subprocess.run(
        [sys.executable, "-c", f"{heard}; runpy.run_path(sys.argv[1], run_name='__main__')", entry],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{entry.parent}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Stopped.\n")


def test_the_demo_tells_its_folder_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr(demo_module, "show_audit", lambda audit: None)
    side = {"converged": 1, "off_data_mean": 0.0}
    facts = {
        "settings": {"latents": 4},
        "geodesics": {"pairs": 1, "before": side, "after": side, "straight_off_data_mean": 0.0},
    }
    demo_module._summarise(facts, SimpleNamespace(passed=True), Path("a[/b]"), 1.0)
    assert "Open a[/b]/report.html to see it" in capsys.readouterr().out


@pytest.mark.parametrize("tty", [True, False])
def test_tables_lose_nothing_where_they_are_wide(capsys, monkeypatch, tty):
    """Coordinates and lengths were cut to the terminal's width, and in files to a width of 80."""
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty)
    point = ",".join(f"{i / 7:.4f}" for i in range(40))
    show_table(("from", "to", "length", "± at most", "status"), [(point, "3", "12.345", "0.00123", "CONVERGED")])
    said = capsys.readouterr().out
    assert "…" not in said and (tty or point in said)


def test_a_matrix_is_written_without_being_in_memory(tmp_path):
    matrix = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.float64, (2000, 2001))
    matrix[:] = np.arange(2001)
    tracemalloc.start()
    try:
        write_file(tmp_path / "out.npy", npy(matrix))
        assert tracemalloc.get_traced_memory()[1] < matrix.nbytes / 10
    finally:
        tracemalloc.stop()
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "big.npy").read_bytes()


def test_results_are_packed_from_any_device():
    """NumPy itself takes no tensor that requires grad or lies on a GPU."""
    value = torch.ones(2, requires_grad=True)
    stream = io.BytesIO()
    npy(value)(stream)
    assert np.load(io.BytesIO(stream.getvalue())).tolist() == [1, 1]
    assert np.load(io.BytesIO(packed(points=value)))["points"].tolist() == [1, 1]


class TestExitCodes:
    """A result that is not good ends in 1, and each command's help says so."""

    @pytest.mark.parametrize("command", [c.__name__ for c in COMMANDS if c.__name__ not in ("repair", "describe")])
    def test_the_help_says_when_it_is_1(self, command):
        text = " ".join(CliRunner().invoke(app, [command, "--help"]).output.split())
        assert "exit code 1 if" in text

    @pytest.mark.parametrize("command", ["audit", "report"])
    def test_an_audit_that_fails(self, place, tmp_path, monkeypatch, command):
        """With an inflation of 0.1 the repair misses the audit's bound of 25."""
        if not (place / "poor").exists():
            arguments = ("--latents", place / "latents.npy", "--out", place / "poor", "--inflation", "0.1")
            done = CliRunner().invoke(app, list(map(str, ("repair", *absolute(place), *arguments))))
            assert done.exit_code == 0, done.output
        more = ("--pairs", "1", "--out", tmp_path / "r[/b]") if command == "report" else ("--pairs", "0")
        done = CliRunner().invoke(app, list(map(str, (command, place / "poor", *absolute(place), *more))))
        assert done.exit_code == 1 and "FAIL" in done.output, done.output
        said = " ".join(done.output.split())
        assert "smoothness is not judged: the published baseline needs the training data." in said
        if command == "report":
            assert "r[/b]/report.html to see it" in done.output
            assert {path.name for path in (tmp_path / "r[/b]").iterdir()} >= {"report.html", "audit.json"}


class TestHelp:
    def test_what_a_negative_number_is_depends_on_the_columns(self):
        text = CliRunner().invoke(app, ["geodesic", "--help"], env={"COLUMNS": "400"}).output
        assert "-1 the last; but of latents with one column -1 is a coordinate" in " ".join(text.split())

    def test_every_command_is_listed_with_a_sentence(self):
        text = CliRunner().invoke(app, ["--help"]).output
        for command in COMMANDS:
            assert command.__name__ in text
        assert "Exit codes" in text

    @pytest.mark.parametrize("command", [command.__name__ for command in COMMANDS])
    def test_every_option_is_explained(self, command):
        done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
        assert done.exit_code == 0
        for line in done.output.splitlines():
            if line.strip("│ *").startswith("--"):
                assert len(line.strip("│ ").split()) > 3, line


def test_the_version_is_told():
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"posthoc-metric {posthoc_metric.__version__}\n")


class TestMistakes:
    def test_unknown_option_and_command(self):
        assert "No such option" in mistake("demo", "--ot", "x")
        assert "No such command" in mistake("repare")

    def test_missing_files(self, place):
        text = mistake("describe", "--checkpoint", place / "no.pt")
        assert "no.pt" in text and "Error:" in text
        text = mistake("audit", place / "nowhere", *absolute(place))
        assert "nowhere" in text and "no such file" in text

    def test_wrong_rows_and_coordinates(self, place):
        common = ("geodesic", place / "out", *absolute(place), "--from", "0")
        assert "`--to` must be a row from 0 to 399; got 4000" in mistake(*common, "--to", "4000")
        assert "2 coordinates" in mistake(*common, "--to", "1,2,3")
        assert "2 coordinates" in mistake(*common, "--to", "here")
        assert "equally often; got 1 and 2" in mistake(*common, "--to", "1", "--to", "2")

    def test_a_row_may_be_counted_from_the_end(self):
        latents = torch.arange(8.0).view(4, 2)
        assert points_of(["-1"], "--from", latents).tolist() == [[6.0, 7.0]]
        with pytest.raises(InvalidArgumentError, match="0 to 3; got -5. Rows count from zero, or backwards from -1"):
            points_of(["-5"], "--from", latents)

    def test_a_whole_number_is_a_row_of_one_dimension_too(self):
        """Coordinate 3.0 far outside the data was once measured where row 3 was asked for."""
        latents = torch.arange(8.0).view(8, 1) / 10
        found = points_of(["3", "3.0", "-1", "+2", "2e0"], "--from", latents)
        assert torch.equal(found, torch.tensor([[0.3], [3.0], [-1.0], [2.0], [2.0]]))
        with pytest.raises(InvalidArgumentError, match="0 to 7; got 8. Rows count.*coordinate 8 is written 8.0"):
            points_of(["8"], "--from", latents)
        with pytest.raises(InvalidArgumentError, match="a coordinate with a decimal point; got '1,2'"):
            points_of(["1,2"], "--from", latents)

    @pytest.mark.parametrize(
        "command", [("audit",), ("geodesic", "--from", "0", "--to", "1"), ("distances",)], ids=lambda c: c[0]
    )
    def test_where_the_result_goes_is_checked_before_the_work(self, place, tmp_path, monkeypatch, command):
        monkeypatch.setattr(commands_module, "open_repaired", lambda *args: pytest.fail("work began"))
        common = (command[0], place / "out", *absolute(place), *command[1:], "--out")
        assert "cannot write" in mistake(*common, tmp_path / "no" / "file")
        assert "`--out` must be a file to write" in mistake(*common, tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("command", "ending"), [(("geodesic", "--from", "0", "--to", "1"), ".npz"), (("distances",), ".npy")]
    )
    def test_a_result_is_not_written_under_another_ending(self, place, tmp_path, monkeypatch, command, ending):
        monkeypatch.setattr(commands_module, "open_repaired", lambda *args: pytest.fail("work began"))
        for name in ("d.csv", "d", "d.pt"):
            text = mistake(command[0], place / "out", *absolute(place), *command[1:], "--out", tmp_path / name)
            assert f"`--out` must end in {ending}" in text and f"Name it 'd{ending}'" in text
        assert list(tmp_path.iterdir()) == []

    def test_a_point_that_is_not_finite_is_named_by_its_option(self, place):
        text = mistake("geodesic", place / "out", *absolute(place), "--from", "nan,1", "--to", "0")
        assert "`--from` must be finite; row 0 is" in text

    def test_points_of_another_width_are_named_by_their_option(self, place, tmp_path):
        np.save(tmp_path / "p.npy", np.zeros((3, 5)))
        common = ("distances", place / "out", *absolute(place), "--out", tmp_path / "d.npy")
        assert "`--points` must have 2 columns" in mistake(*common, "--points", tmp_path / "p.npy")
        assert "`--points` must be a file" in mistake(*common, "--points", tmp_path / "no.npy")
        assert "`--jobs` must be None or an integer" in mistake(*common, "--most", "3", "--jobs", "0")

    @pytest.mark.parametrize(
        ("message", "said"),
        [
            ("`start` must be finite; `end` too", "`--from` must be finite; `--to` too"),
            ("Pass factory=, the class (and factory_kwargs= for", "Pass --factory, the class (and --factory-args for"),
            ("Pass trust=True if you", "Pass --trust if you"),
            ("save it and pass factory=.", "save it and pass --factory."),
            ("or pass strict=False to", "or pass strict=False (in Python only) to"),
            ("with condition= what", "with --condition what"),
            ("or latent_shape= where", "or --latent-shape where"),
            ("Say with method='decode' or `output=` (a key)", "Say with --method decode or --output (a key)"),
            ("Take output='probs'.", "Take --output probs."),
            ("pass a function of the result.", "pass a function of the result (in Python only)."),
            ("or use method='solver'.", "or use --by solver."),
            ("and `store` keeps what is done", "and `--store` keeps what is done"),
            ("`factory` must be a class", "`--factory` must be a class"),
            ("`data` may not belong to `latents`", "`--data` may not belong to `--latents`"),
            ("`support_quantile` is a share", "`--support-quantile` is a share"),
            ("Pass the file that `repaired.save(path)` wrote.", "Pass the file that `posthoc-metric repair` wrote."),
            ("again with latent_dim=9 (and method=, the part", "again with --latent-dim 9 (and --method, the part"),
            ("If they are right pass latent_shape=(4, 8, 8);", "If they are right pass --latent-shape 4x8x8;"),
            ("what it needs as factory_kwargs={...}.", "what it needs as --factory-args '{...}'."),
            ("with condition={'a': [1]}.", "with --condition '{\"a\": [1]}'."),
            ("Use n_jobs=1, or", "Use --jobs 1, or"),
            ('or use uncertainty="rbf".', "or use --uncertainty rbf."),
            (
                "pass method=, a function of the model and z. ",
                "pass method=, a function of the model and z (in Python only). ",
            ),
            ("wrap it: Decoder(m, latent_shape=(2, 3)).", "wrap it: Decoder(m, latent_shape=(2, 3))."),
            ("`refine=False` leaves", "`refine=False` (in Python only) leaves"),
            ("metric.geodesic(a, b).status says why", "posthoc-metric geodesic says why"),
            ("wrap it: Decoder(m, method='g', output='px').", "wrap it: Decoder(m, method='g', output='px')."),
        ],
    )
    def test_arguments_of_python_are_named_by_their_options(self, message, said):
        assert as_options(message) == said

    @pytest.mark.parametrize("advice", [*MATRIX.values(), *(status.value for status in Status)])
    def test_no_advice_is_for_an_option_that_no_command_has(self, advice):
        """Of what long stages and geodesics advise; what a solution holds is no option."""
        for name, marked in re.findall(r"`([^`]+)`( \(in Python only\))?", as_options(advice)):
            assert marked or name.startswith("--") or name in ("length", "length_error", "mesh")

    def test_data_of_another_length(self, place, tmp_path):
        text = mistake("audit", place / "out", *absolute(place), "--data", place / "latents.npy")
        assert "`--data` must have 64 values a row, as the decoder's output; got 2" in text
        np.save(tmp_path / "few.npy", np.zeros((3, 64)))
        text = mistake("audit", place / "out", *absolute(place), "--data", tmp_path / "few.npy")
        assert "`--data` must have one row for each of the 400 latents; got 3 rows" in text

    def test_data_in_another_order_are_told_of_by_every_command_that_takes_them(self, place, tmp_path, monkeypatch):
        """The audit's bound on smoothness was fitted to them without a word."""

        def enough(*args, **options):
            raise InvalidArgumentError("enough")

        monkeypatch.setattr(posthoc_metric.RepairedMetric, "audit", enough)
        images = np.load(place / "data.npz")["images"]
        np.save(tmp_path / "x.npy", images[np.random.default_rng(0).permutation(len(images))])
        done = CliRunner().invoke(
            app, ["audit", *map(str, (place / "out", *absolute(place))), "--data", str(tmp_path / "x.npy")]
        )
        assert "`--data` may not belong to `--latents` row by row" in done.output

    def test_a_message_in_a_file_is_not_broken_into_lines(self, tmp_path):
        """A path of more than 80 characters came in two."""
        place = tmp_path / ("long" * 30) / "no.pt"
        done = CliRunner().invoke(app, ["describe", "--checkpoint", str(place)])
        assert done.exit_code == 2 and str(place) in done.output and len(done.output.splitlines()) == 1

    def test_a_file_that_is_no_repaired_metric(self, place, tmp_path):
        text = mistake("audit", tmp_path, *absolute(place))
        assert "no such file. Pass the file that `posthoc-metric repair` wrote." in text
        assert "`--checkpoint`, a repaired metric by the argument REPAIRED" in mistake(
            "audit", place / "latents.npy", *absolute(place)
        )

    def test_another_decoder(self, place, tmp_path):
        torch.save({name: 2 * value for name, value in digits_vae()[0].state_dict().items()}, tmp_path / "d.pt")
        text = mistake("audit", place / "out", "--checkpoint", tmp_path / "d.pt", *DECODER[2:])
        assert "another decoder" in text

    def test_wrong_factory_arguments(self, place):
        for text in ("width=3", "[" * 100_000):
            assert "JSON object" in mistake("describe", *absolute(place), "--factory-args", text)

    def test_wrong_image_shape(self, place, tmp_path, monkeypatch):
        monkeypatch.setattr(posthoc_metric.RepairedMetric, "geodesic", lambda *args: pytest.fail("work began"))
        common = ("report", place / "out", *absolute(place), "--out", tmp_path / "r")
        said = "`--image-shape` must be (h, w), (h, w, 3) or (3, h, w) with 64 entries"
        assert said in mistake(*common, "--image-shape", "28x28")
        assert "must read like 28x28" in mistake(*common, "--image-shape", "big")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("seed", ["-1", "9" * 30])
    def test_a_seed_of_the_report_is_one_of_the_repair(self, place, tmp_path, seed):
        """torch's own error for a large one ended the command with a stack trace."""
        common = ("report", place / "out", *absolute(place), "--out", tmp_path / "r")
        assert "`--seed` must be an integer from 0 to 2**32 - 1" in mistake(*common, "--seed", seed)
        assert list(tmp_path.iterdir()) == []

    def test_wrong_knobs(self, place, tmp_path):
        common = ("repair", *absolute(place), "--latents", place / "latents.npy", "--out", tmp_path / "r")
        assert "`--inflation`" in mistake(*common, "--inflation", "-1")
        assert "`--support-quantile`" in mistake(*common, "--support-quantile", "1.5")
        assert list(tmp_path.iterdir()) == []

    def test_an_output_folder_that_is_a_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(demo_module, "digits_vae", lambda: pytest.fail("work began before the folder was checked"))
        (tmp_path / "file").write_text("")
        assert "is a file" in mistake("demo", "--out", tmp_path / "file")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_an_output_folder_that_cannot_be_written(self, tmp_path):
        tmp_path.chmod(0o500)
        assert "cannot write" in mistake("demo", "--out", tmp_path / "out")


def absolute(place):
    return ("--checkpoint", place / "decoder.pt", *DECODER[2:])


class TestArrays:
    VALUES = np.arange(6.0).reshape(3, 2)

    def test_every_ending_gives_the_same_numbers(self, tmp_path):
        np.save(tmp_path / "a.npy", self.VALUES)
        np.savez(tmp_path / "a.npz", only=self.VALUES)
        torch.save(torch.from_numpy(self.VALUES), tmp_path / "a.pt")
        torch.save({"z": torch.from_numpy(self.VALUES), "x": torch.zeros(1)}, tmp_path / "d.pt")
        np.savetxt(tmp_path / "a.csv", self.VALUES, delimiter=",")
        np.savetxt(tmp_path / "h.csv", self.VALUES, delimiter=",", header="one,two", comments="")
        for name in ("a.npy", "a.npz", "a.npz:only", "a.pt", "d.pt:z", "a.csv", "h.csv"):
            assert np.array_equal(read_named(str(tmp_path / name), "latents"), self.VALUES), name

    @pytest.mark.parametrize("head", ["\ufeff", "\ufeffa,b\n", ",a\n", "\n", '"a","b"\n', "# note\na,b\n", "# 0,1\n"])
    def test_no_row_of_a_table_is_taken_for_its_header(self, tmp_path, head):
        (tmp_path / "a.csv").write_text(head + "0,1\n2,3\n4,5\n", encoding="utf-8")
        assert np.array_equal(read_named(str(tmp_path / "a.csv"), "latents"), self.VALUES)

    @pytest.mark.parametrize("apart", [";", "\t", " "])
    def test_fields_that_stand_apart_otherwise_are_told_of(self, tmp_path, apart):
        (tmp_path / "a.csv").write_text(f"a{apart}b\n0.5{apart}1\n2{apart}3\n")
        said = re.escape(f"fields stand apart by {apart!r}, and must by commas")
        with pytest.raises(CheckpointError, match=said):
            read_named(str(tmp_path / "a.csv"), "latents")

    @pytest.mark.parametrize(
        ("first", "field"), [(",1", "1 is ''"), ("0,", "2 is ''"), ("0,NA", "2 is 'NA'"), ("NA,NA", "2"), (",0,1", "1")]
    )
    def test_a_first_line_that_is_neither_is_refused(self, tmp_path, first, field):
        (tmp_path / "a.csv").write_text(f"{first}\n2,3\n")
        with pytest.raises(CheckpointError, match=f"line 1 is neither.*its field {field}"):
            read_named(str(tmp_path / "a.csv"), "latents")

    @pytest.mark.parametrize(
        "table",
        [
            '"","a","b"\n"1",0.1,0.2\n"2",0.3,0.4\n',  # R's write.csv
            ",a,b\n1,0.1,0.2\n2,0.3,0.4\n",  # with quote=FALSE
            '"","a","b"\n"cell 1",0.1,0.2\n',
            "a,b,c\ncell 1,0.1,0.2\n",
            '"a","b"\n"1",0.1,0.2\n',  # R's write.table
            "a,b\n1,0.1,0.2\n2,0.3,0.4\n",
            "a,b\n7,0.1,0.2\n2,0.3,0.4\n",
            ",a,b\n0,0.1,0.2\n1,0.3,0.4\n",  # pandas
            ",a,b\n9,0.1,0.2\n4,0.3,0.4\n7,0.5,0.6\n",  # after shuffling
            "cell,a\n0,0.1\n1,0.2\n2,0.3\n",  # an index with a name
            "id,a\n1,4\n2,5\n3,5\n",
        ],
    )
    def test_names_of_rows_are_no_data(self, tmp_path, table):
        (tmp_path / "a.csv").write_text(table)
        with pytest.raises(CheckpointError, match="`latents`.*names or numbers of rows.*row.names=FALSE"):
            read_named(str(tmp_path / "a.csv"), "latents")

    @pytest.mark.parametrize(
        "table", ["a\n0\n1\n2\n", "a,b\n0,0.1\n1,0.2\n", "0,0.5\n1,0.2\n2,0.3\n", ",a\n3,0.5\n3,0.2\n1,0.3\n"]
    )
    def test_numbers_that_need_not_be_those_of_rows_are_data(self, tmp_path, table):
        (tmp_path / "a.csv").write_text(table)
        columns = table.splitlines()[-1].count(",") + 1
        assert read_named(str(tmp_path / "a.csv"), "latents").shape[1] == columns

    def test_a_missing_value_is_no_name_of_a_row(self, tmp_path):
        (tmp_path / "a.csv").write_text("a,b\nNA,0.1\n1,0.2\n")
        with pytest.raises(CheckpointError, match="could not convert string 'NA'"):
            read_named(str(tmp_path / "a.csv"), "latents")

    def test_a_single_number_is_no_table(self, tmp_path):
        np.savez(tmp_path / "a.npz", epochs=300, z=self.VALUES)
        with pytest.raises(CheckpointError, match="`points` must hold rows of numbers.*a single number"):
            read_named(str(tmp_path / "a.npz:epochs"), "points")

    def test_npy_is_not_read_into_memory(self, tmp_path):
        np.save(tmp_path / "a.npy", self.VALUES)
        assert isinstance(read_array(tmp_path / "a.npy", "latents"), np.memmap)

    def test_several_arrays_need_a_name(self, tmp_path):
        np.savez(tmp_path / "a.npz", one=self.VALUES, two=self.VALUES)
        with pytest.raises(InvalidArgumentError, match="holds the arrays one, two; say which"):
            read_named(str(tmp_path / "a.npz"), "latents")
        with pytest.raises(InvalidArgumentError, match="`a.npz:three` names none of them"):
            read_named(str(tmp_path / "a.npz:three"), "latents")

    @pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "a.csv"])
    @pytest.mark.parametrize("content", [b"", b"\x00\x01not an array", b"\x93NUMPY\x01\x00garbage"])
    def test_damaged_files_are_named(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises((CheckpointError, InvalidArgumentError), match=f"`latents`.*{name}"):
            read_named(str(tmp_path / name), "latents")

    @pytest.mark.parametrize("name", ["a.npy", "a.npz"])
    def test_no_pickle_is_opened(self, tmp_path, name):
        ran = tmp_path / "ran"
        payload = np.array([Payload(str(ran))], dtype=object)
        (np.save if name.endswith("npy") else np.savez)(tmp_path / name, payload)
        with pytest.raises(CheckpointError):
            read_named(str(tmp_path / name), "latents")
        assert not ran.exists()

    def test_no_pickle_in_a_torch_file_is_opened(self, tmp_path):
        ran = tmp_path / "ran"
        torch.save(Payload(str(ran)), tmp_path / "a.pt")
        with pytest.raises(CheckpointError):
            read_named(str(tmp_path / "a.pt"), "latents")
        assert not ran.exists()

    def test_text_is_no_array(self, tmp_path):
        np.save(tmp_path / "a.npy", np.array(["a", "b"]))
        with pytest.raises(CheckpointError, match="real numbers"):
            read_named(str(tmp_path / "a.npy"), "latents")

    def test_unknown_ending_folder_and_missing_file(self, tmp_path):
        with pytest.raises(InvalidArgumentError, match="must be a file that ends in .npy"):
            read_named(str(tmp_path / "a.txt"), "latents")
        with pytest.raises(CheckpointError, match="does not exist"):
            read_named(str(tmp_path / "a.npy"), "latents")
        (tmp_path / "b.npy").mkdir()
        with pytest.raises(CheckpointError, match="is a folder"):
            read_named(str(tmp_path / "b.npy"), "latents")

    def test_anndata_names_its_extra(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "anndata", None)
        (tmp_path / "a.h5ad").write_bytes(b"x")
        with pytest.raises(MissingExtraError, match=r"posthoc-metric\[anndata\]"):
            read_named(str(tmp_path / "a.h5ad"), "latents")

    def test_anndata(self, tmp_path):
        anndata = pytest.importorskip("anndata", reason="needs the extra posthoc-metric[anndata]")
        layers = {"counts": scipy.sparse.csr_matrix(3 * self.VALUES), "both": self.VALUES}
        table = anndata.AnnData(self.VALUES, obsm={"X_scVI": 2 * self.VALUES, "both": self.VALUES}, layers=layers)
        table.write_h5ad(tmp_path / "a.h5ad")
        assert np.array_equal(read_named(str(tmp_path / "a.h5ad:X"), "data"), self.VALUES)
        assert np.array_equal(read_named(str(tmp_path / "a.h5ad:X_scVI"), "latents"), 2 * self.VALUES)
        assert np.array_equal(read_named(str(tmp_path / "a.h5ad:counts"), "data"), 3 * self.VALUES)
        assert scipy.sparse.issparse(read_named(str(tmp_path / "a.h5ad:counts"), "data", sparse=True))
        with pytest.raises(InvalidArgumentError, match="a layer and another array that are called both"):
            read_named(str(tmp_path / "a.h5ad:both"), "data")
        with pytest.raises(InvalidArgumentError, match="arrays X, both, counts, X_scVI; say which"):
            read_named(str(tmp_path / "a.h5ad"), "data")
        anndata.AnnData(None, shape=self.VALUES.shape, layers={"counts": self.VALUES}).write_h5ad(tmp_path / "b.h5ad")
        assert np.array_equal(read_named(str(tmp_path / "b.h5ad"), "data"), self.VALUES)
        with pytest.raises(InvalidArgumentError, match="names none of them"):
            read_named(str(tmp_path / "b.h5ad:X"), "data")


def test_torch_is_not_heard_over_its_own_classes(recwarn):
    with clear_errors():
        for module in ("copyreg", "elsewhere"):
            warnings.warn_explicit("deprecated", FutureWarning, "file.py", 1, module=module)
    assert len(recwarn) == 1


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_an_exported_program_is_repaired_without_a_word_of_torch_s_own(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 5)).eval()
    rows = ({0: torch.export.Dim("rows")},)
    torch.export.save(torch.export.export(module, (torch.zeros(3, 2),), dynamic_shapes=rows), tmp_path / "m.pt2")
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(300, 2)))
    done = run("repair", "--checkpoint", "m.pt2", "--latents", "z.npy", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0 and "FutureWarning" not in done.stderr, done.stderr


class Stopped(torch.nn.Module):
    """In which Ctrl-C is pressed."""

    @torch.jit.ignore
    def stop(self, z: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.stop(z)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_ctrl_c_within_torchscript_ends_as_any_other(capsys):
    module = torch.jit.script(Stopped())
    with pytest.raises(typer.Exit) as ended, clear_errors():
        module(torch.zeros(1))
    assert ended.value.exit_code == 130 and "Stopped" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="another"), clear_errors():
        raise RuntimeError("another")


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


class AtLibrary(torch.nn.Module):
    """Needs a number a row, as decoders of single cells need the library's size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 4)

    def forward(self, z, library):
        return library.exp() * self.layer(z).softmax(1) if library.shape == (len(z), 1) else library.missing


def test_a_decoder_that_needs_more_than_latents_gets_it(tmp_path):
    torch.save(AtLibrary().state_dict(), tmp_path / "m.pt")
    decoder = ("--checkpoint", tmp_path / "m.pt", "--factory", f"{__file__}:AtLibrary")
    assert "with --condition what it needs" in mistake("describe", *decoder)
    assert "pass [9.5]" in mistake("describe", *decoder, "--condition", '{"library": 9.5}')
    assert "`--condition` must be JSON" in mistake("describe", *decoder, "--condition", "library=3")
    found = {}
    for name, condition in {"keyword": '{"library": [9.5]}', "second argument": "[9.5]"}.items():
        arguments = ("describe", *decoder, "--condition", condition, "--json")
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        found[name] = json.loads(done.output[done.output.index("{") :])
        assert found[name]["latent_dim"] == 3 and "handed over as (B, 1)" in found[name]["description"]


class OfMaps(torch.nn.Module):
    """Decodes maps (B, 2, 3, 3), as convolutional autoencoders do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.ConvTranspose2d(2, 1, 3, stride=2)

    def forward(self, z):
        return self.layer(z).tanh()


def test_latents_may_have_axes(tmp_path):
    torch.save(OfMaps().state_dict(), tmp_path / "m.pt")
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(80, 18)))
    decoder = ("--checkpoint", tmp_path / "m.pt", "--factory", f"{__file__}:OfMaps")
    assert "`--latent-shape` must read like 4x8x8" in mistake("describe", *decoder, "--latent-shape", "2,3,3")
    shaped = (*decoder, "--latent-shape", "2x3x3")
    arguments = ("repair", *shaped, "--latents", tmp_path / "z.npy", "--out", tmp_path / "run", "--json")
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    decoder = posthoc_metric.Decoder(OfMaps(), latent_shape=(2, 3, 3))
    repaired = posthoc_metric.load(tmp_path / "run" / "repaired.safetensors", decoder)
    assert repaired.dim == 18 and repaired.decoder.output_dim == 49


@pytest.mark.parametrize("option", ["repair --out", "report --out", "demo --out", "distances --store"])
def test_an_empty_name_is_not_the_current_folder(place, tmp_path, monkeypatch, option):
    """As of a shell's variable that is not set."""
    monkeypatch.chdir(tmp_path)
    command, name = option.split()
    others = {
        "repair": (*absolute(place), "--latents", place / "latents.npy"),
        "report": (place / "out", *absolute(place)),
        "distances": (place / "out", *absolute(place), "--most", 3, "--out", tmp_path / "d.npy"),
        "demo": (),
    }[command]
    assert f"'{name}': it must name a folder, and is empty" in mistake(command, *others, f"{name}=")
    assert not [*tmp_path.iterdir()]
