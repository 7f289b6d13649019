"""Mutated files against the loaders: every one ends in an error of this library's tree or in a load.

``python tests/fuzzing.py --cases 10000`` prints the counts; ``test_fuzz_loaders.py`` runs a few hundred.  Each case is
a kind of file and a number, from which the mutation follows, so that a case can be run again by itself::

    python tests/fuzzing.py --case script:1234

Cases run in a process of their own with an address space of eight gigabytes: a crash of a native parser, a hang and an
allocation that only a damaged header asks for are counted as what they are.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import pickle
import random
import resource
import selectors
import subprocess
import sys
import tempfile
import warnings
import zipfile

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

SECONDS = 60
MEMORY = 2**33


class Payload:
    """Unpickling this writes a file."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.write_text, (pathlib.Path(self.marker), "it ran")


class Saves(nn.Module):
    """A script that writes a file when it is called."""

    def __init__(self, where: str):
        super().__init__()
        self.lin = nn.Linear(2, 6)
        self.where: str = where

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.lin(z)
        torch.save(x, self.where)
        return x


def half() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 6))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def latents() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((40, 2))


def make_corpus(folder: pathlib.Path) -> list[str]:
    """A whole file of every kind that the installed packages can write; those that carry a payload say so."""
    import posthoc_metric as pm

    marker = str(folder / "marker")
    module, array = half().eval(), latents()
    made = {
        "torch.pt": lambda p: torch.save({"epoch": 3, "state_dict": module.state_dict()}, p),
        "legacy.pth": lambda p: torch.save(module.state_dict(), p, _use_new_zipfile_serialization=False),
        "safetensors.safetensors": lambda p: save_file(module.state_dict(), p),
        "script.pt": lambda p: torch.jit.script(module).save(str(p)),
        "exported.pt2": lambda p: torch.export.save(
            torch.export.export(module, (torch.zeros(4, 2),), dynamic_shapes=({0: torch.export.Dim("b", min=2)},)), p
        ),
        "onnx.onnx": lambda p: _onnx(module, p),
        "skops.skops": _skops,
        "npy.npy": lambda p: np.save(p, array),
        "npz.npz": lambda p: np.savez(p, z=array, x=array),
        "compressed.npz": lambda p: np.savez_compressed(p, z=array),
        "csv.csv": lambda p: np.savetxt(p, array, delimiter=",", header="a,b", comments=""),
        "array.pt": lambda p: torch.save(torch.from_numpy(array), p),
        "h5ad.h5ad": lambda p: _h5ad(array, p),
        "ours.safetensors": lambda p: pm.repair(pm.Decoder(module, latent_dim=2), array).save(p),
        "gp.safetensors": lambda p: pm.repair(pm.Decoder(module, latent_dim=2), array, uncertainty="gp").save(p),
        "payload-torch.pt": lambda p: torch.save({"state_dict": module.state_dict(), "x": Payload(marker)}, p),
        "payload-legacy.pth": lambda p: torch.save(Payload(marker), p, _use_new_zipfile_serialization=False),
        "payload-pickle.bin": lambda p: pathlib.Path(p).write_bytes(pickle.dumps(Payload(marker))),
        "payload-npy.npy": lambda p: np.save(p, np.array([Payload(marker)], dtype=object)),
        "payload-npz.npz": lambda p: np.savez(p, z=np.array([Payload(marker)], dtype=object)),
        "payload-array.pt": lambda p: torch.save({"z": Payload(marker)}, p),
        "payload-script.pt": lambda p: torch.jit.script(Saves(marker)).save(str(p)),
    }
    kinds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, write in made.items():
            try:
                write(folder / name)
            except ImportError:  # its package is not installed
                continue
            kinds.append(name)
    pathlib.Path(marker).unlink(missing_ok=True)
    return kinds


def _onnx(module: nn.Module, path: pathlib.Path) -> None:
    import onnx
    import onnxruntime  # noqa: F401  (reads it)
    from onnx import TensorProto, helper, numpy_helper

    names = {"w0": module[0].weight, "b0": module[0].bias, "w1": module[2].weight, "b1": module[2].bias}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["z", "w0", "b0"], ["h"], transB=1),
            helper.make_node("Tanh", ["h"], ["t"]),
            helper.make_node("Gemm", ["t", "w1", "b1"], ["x"], transB=1),
        ],
        "decoder",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 6])],
        [numpy_helper.from_array(tensor.detach().numpy().copy(), name) for name, tensor in names.items()],
    )
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def _skops(path: pathlib.Path) -> None:
    import skops.io
    from sklearn.neural_network import MLPRegressor

    z = latents()
    skops.io.dump(MLPRegressor(hidden_layer_sizes=(4,), max_iter=5, random_state=0).fit(z, np.tanh(z)), path)


def _h5ad(array: np.ndarray, path: pathlib.Path) -> None:
    import anndata

    anndata.AnnData(array).write_h5ad(path)


def mutate(data: bytes, name: str, draw: random.Random) -> bytes:
    """One to four changes to the bytes, half of the time inside a member of an archive, which is packed anew."""
    if data[:2] == b"PK" and draw.random() < 0.6:
        with contextlib.suppress(zipfile.BadZipFile):
            return _in_member(data, draw)
    if name.endswith(".safetensors") and draw.random() < 0.6:
        size = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + size]
        header = _changed_json(header, draw) if draw.random() < 0.7 else _changed(header, draw)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    return _changed(data, draw)


def _changed_json(text: bytes, draw: random.Random) -> bytes:
    """JSON with one entry at any depth removed or replaced; a string that is JSON itself may be gone into."""
    tree = json.loads(text)
    node, key = tree, draw.choice(sorted(tree))
    while True:
        value = node[key]
        if isinstance(value, str) and value[:1] in "{[" and draw.random() < 0.9:
            node[key] = _changed_json(value.encode(), draw).decode()
            return json.dumps(tree).encode()
        if not isinstance(value, (dict, list)) or not value or draw.random() < 0.3:
            break
        node, key = value, draw.choice(sorted(value) if isinstance(value, dict) else range(len(value)))
    if draw.random() < 0.3:
        del node[key]
    else:
        node[key] = draw.choice((None, -1, 0, 1e9, 99999999999999, "x", [], {}, [3], True, "rbf", "gp", float("nan")))
    return json.dumps(tree).encode()


def _in_member(data: bytes, draw: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    chosen = draw.choice(sorted(members))
    other = draw.choice(sorted(members))
    kind = draw.random()
    if kind < 0.75:
        members[chosen] = _changed(members[chosen], draw)
    elif kind < 0.85:
        members[chosen], members[other] = members[other], members[chosen]
    elif kind < 0.95:
        del members[chosen]
    else:
        members[chosen + "x"] = members.pop(chosen)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, content in members.items():
            archive.writestr(entry, content)
    return buffer.getvalue()


def _changed(data: bytes, draw: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        found = _once(found, draw)
    return bytes(found)


def _once(data: bytearray, draw: random.Random) -> bytearray:
    if not data:
        return bytearray(draw.randbytes(8))
    kind = draw.randrange(10)
    # headers decide what happens next: half of the changes fall into the first bytes
    at = draw.randrange(min(len(data), 256) if draw.random() < 0.5 else len(data))
    if kind <= 2:
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 3:
        data[at] = draw.randrange(256)
    elif kind == 4:
        return data[: draw.randrange(len(data))]
    elif kind == 5:
        data[at:at] = draw.randbytes(draw.randint(1, 32))
    elif kind == 6:
        del data[at : at + draw.randint(1, 64)]
    elif kind == 7:
        width = draw.choice((1, 2, 4, 8))
        data[at : at + width] = (
            (b"\xff" * width) if draw.random() < 0.5 else b"\x00\x00\x00\x00\x00\x00\x00\x7f"[-width:]
        )
    elif kind == 8:
        digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
        if digits:
            at = draw.choice(digits)
            data[at : at + 1] = draw.choice((b"-1", b"0", b"99999999999999", b"1e9", b"nan", b"null"))
    else:
        start = draw.randrange(len(data))
        piece = data[start : start + draw.randint(1, 64)]
        data[at : at + len(piece)] = piece
    return data


def load(name: str, path: pathlib.Path, decoder: object) -> object:
    """What a user would do with the file."""
    import posthoc_metric as pm
    from posthoc_metric.arrays_io import read_array

    if name in ("ours.safetensors", "gp.safetensors"):
        return pm.load(path, decoder).tensor(latents()[:2])
    if name.startswith(("npy", "npz", "compressed", "csv", "array", "h5ad")) or "npy" in name or "npz" in name:
        return np.array(read_array(path, "latents", "X" if "h5ad" in name else "z" if "npz" in path.suffix else None))
    if name == "payload-array.pt":
        return read_array(path, "latents")
    weights = name.startswith(("torch", "legacy", "safetensors", "payload-torch", "payload-legacy"))
    return pm.load_decoder(path, factory=half if weights else None, latent_dim=2)


def work(folder: pathlib.Path) -> None:
    """Read cases from standard input and answer each with one line of JSON."""
    import posthoc_metric as pm
    from posthoc_metric.errors import PosthocMetricError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    marker = folder / "marker"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # parsers talk
    decoder = pm.Decoder(half(), latent_dim=2)
    with tempfile.TemporaryDirectory() as scratch:
        for line in sys.stdin:
            case = line.strip()
            name, number = case.rsplit(":", 1)
            path = pathlib.Path(scratch) / f"mutated{pathlib.Path(name).suffix}"
            path.write_bytes(mutate((folder / name).read_bytes(), name, random.Random(f"{name}:{number}")))
            words = ""
            try:
                load(name, path, decoder)
                outcome = "loaded"
            except PosthocMetricError as error:
                outcome, words = "refused", f"{type(error).__name__}: {error}"
            except BaseException as error:  # whatever it is, it is what this looks for
                outcome, words = "escaped", f"{type(error).__name__}: {error}"
            if marker.exists():
                marker.unlink()
                outcome = "ran"
            answers.write(json.dumps({"case": case, "outcome": outcome, "words": words[:300]}) + "\n")
            answers.flush()


class Worker:
    """A process that runs cases; a new one takes its place when it dies or hangs."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self._start()

    def _start(self) -> None:
        command = [sys.executable, __file__, "--worker", str(self.folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def run(self, case: str) -> dict[str, str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as ready:
            ready.register(self.process.stdout, selectors.EVENT_READ)
            answer = self.process.stdout.readline() if ready.select(SECONDS) else None
        if answer:
            return json.loads(answer)
        self.stop()
        code = self.process.returncode
        self._start()
        return {"case": case, "outcome": "hung" if answer is None else "crashed", "words": f"exit code {code}"}

    def stop(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            self.process.kill()
        self.process.wait()


def fuzz(cases: int, first: int = 0) -> tuple[collections.Counter, list[dict[str, str]]]:
    """Counts by kind and outcome of ``cases`` cases, and every case that went wrong."""
    counts: collections.Counter = collections.Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        kinds = make_corpus(folder)
        worker = Worker(folder)
        try:
            for index in range(cases):
                found = worker.run(f"{kinds[index % len(kinds)]}:{first + index // len(kinds)}")
                counts[kinds[index % len(kinds)], found["outcome"]] += 1
                if found["outcome"] not in ("loaded", "refused"):
                    wrong.append(found)
        finally:
            worker.stop()
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--case", help="run this case alone, KIND:NUMBER, and show what happens")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker)
    elif given.case:
        import posthoc_metric as pm

        with tempfile.TemporaryDirectory() as folder:
            make_corpus(pathlib.Path(folder))
            name = given.case.rsplit(":", 1)[0]
            path = pathlib.Path(folder) / f"mutated{pathlib.Path(name).suffix}"
            path.write_bytes(mutate((pathlib.Path(folder) / name).read_bytes(), name, random.Random(given.case)))
            print(load(name, path, pm.Decoder(half(), latent_dim=2)))
    else:
        counts, wrong = fuzz(given.cases, given.first)
        outcomes = ("refused", "loaded", "escaped", "crashed", "hung", "ran")
        print(f"{'kind':26s}" + "".join(f"{outcome:>9s}" for outcome in outcomes))
        for kind in [*dict.fromkeys(kind for kind, _ in counts), "all"]:
            numbers = [
                sum(n for (k, o), n in counts.items() if o == outcome and kind in (k, "all")) for outcome in outcomes
            ]
            print(f"{kind:26s}" + "".join(f"{number:9d}" for number in numbers))
        for found in wrong:
            print(found["case"], found["outcome"], found["words"])
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
