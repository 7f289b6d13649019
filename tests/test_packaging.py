"""What a newcomer reads and installs: the README's commands and example, the package's files, the pins."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import posthoc_metric

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {pin.name.lower().replace("_", "-"): pin for pin in found}


def fenced(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def requirements(setup, extra=None):
    text = setup["options"]["install_requires"] if extra is None else setup["options.extras_require"][extra]
    return [Requirement(line) for line in text.strip().splitlines()]


def tracked_files():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


class TestReadme:
    def test_it_holds_the_two_commands_and_no_other_like_them(self):
        commands = [
            line for block in fenced("sh") for line in block.splitlines() if line.startswith("python -m pip install")
        ]
        assert commands == [
            "python -m pip install -c constraints.txt -e . && posthoc-metric demo",
            "python -m pip install -c constraints.txt -e '.[test]' && python -m pytest",
        ]

    def test_its_example_runs(self, tmp_path):
        (example,) = fenced("python")[:1]
        lines = [line for line in example.splitlines() if line.strip()]
        assert len(lines) <= 15
        done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "repair audit:" in done.stdout
        assert [path.name for path in tmp_path.iterdir()] == ["repaired.safetensors"]

    def test_its_decoder_of_logits_is_one_of_distributions(self, tmp_path):
        (told,) = (block for block in fenced("python") if "class Pixels" in block)
        (tmp_path / "told.py").write_text(told)
        model = "from torch import nn\n\nclass Decoder(nn.Sequential):\n    def __init__(self):\n        "
        model += "super().__init__(nn.Linear(2, 9))\n"
        (tmp_path / "mymodels.py").write_text(model)
        torch.save(torch.nn.Sequential(torch.nn.Linear(2, 9)).state_dict(), tmp_path / "model.pt")
        options = ["describe", "--checkpoint", "model.pt", "--factory", "told.py:Pixels", "--fisher-rao"]
        # the installed command's path lacks the folder one is in, which `python -m` would put there
        start = "import sys; sys.path.remove(''); from posthoc_metric_command import main; main()"
        command = [sys.executable, "-c", start, *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert "observations of Bernoulli distributions" in done.stdout, done.stderr

    def test_its_links_and_pictures_are_there(self):
        text = README.read_text(encoding="utf-8")
        targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
        assert targets and all((ROOT / target).exists() for target in targets)

    def test_its_pictures_are_small(self):
        assert all(path.stat().st_size < 300_000 for path in (ROOT / "demos" / "images").glob("*.png"))

    def test_no_heading_is_empty(self):
        outside = re.sub(r"^```.*?^```", "code", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        lines = [line for line in re.sub(r"<!--.*?-->", "", outside).splitlines() if line.strip()]
        for line, following in zip(lines, [*lines[1:], "# end"], strict=True):
            if line.startswith("#"):
                depth, below = len(line.split()[0]), len(following.split()[0]) if following.startswith("#") else 99
                assert below > depth, f"nothing under {line!r}"


class TestPackage:
    def test_shipped_files_are_where_package_data_says(self, setup):
        package = Path(posthoc_metric.__file__).parent
        for pattern in setup["options.package_data"]["posthoc_metric"].split():
            assert list(package.glob(pattern)), pattern

    def test_the_version_is_said_once_the_same_way(self, setup):
        assert posthoc_metric.__version__ == setup["metadata"]["version"] == version("posthoc-metric")

    def test_pins_cover_what_is_installed_and_fit_the_lower_bounds(self, setup, pins):
        for requirement in requirements(setup) + requirements(setup, "test"):
            pin = pins[requirement.name.lower().replace("_", "-")]
            (exact,) = pin.specifier
            assert exact.operator == "==" and requirement.specifier.contains(exact.version), requirement.name

    def test_torch_is_pinned_to_the_release_with_a_cpu_build(self, pins):
        assert str(pins["torch"].specifier) == "==2.13.0"

    def test_every_dependency_has_a_lower_bound(self, setup):
        every = requirements(setup) + [
            r for extra in setup["options.extras_require"] for r in requirements(setup, extra)
        ]
        assert all(any(bound.operator == ">=" for bound in requirement.specifier) for requirement in every)

    def test_a_source_distribution_holds_what_the_readme_and_the_tests_need(self, tmp_path):
        pytest.importorskip("setuptools")
        files = {path.relative_to(ROOT).as_posix() for path in tracked_files()}
        for name in files:
            (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / "source" / name)
        build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
        subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "source", capture_output=True, check=True)
        (archive,) = tmp_path.glob("*.tar.gz")
        with tarfile.open(archive) as held:
            shipped = {name.partition("/")[2] for name in held.getnames()}
        assert not {name for name in files if not name.startswith(".")} - shipped


class TestCheckout:
    def test_no_tracked_file_names_a_machine(self):
        # spelled in pieces, so that this file does not name one either
        machine = re.compile("|".join(["/" + "work/", "/" + "root/", "/" + "home/[a-z]", "/" + "opt/(pypi|wheels)"]))
        for path in tracked_files():
            content = path.read_bytes().decode("utf-8", errors="ignore")
            assert not machine.search(content), path

    def test_the_ci_script_is_executable_and_parses(self):
        script = ROOT / ".ci" / "run"
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0

    def test_what_the_demo_writes_is_ignored(self):
        ignored = subprocess.run(["git", "check-ignore", "-q", "posthoc-metric-demo/report.html"], cwd=ROOT)
        if ignored.returncode == 128:
            pytest.skip("not a git checkout")
        assert ignored.returncode == 0
