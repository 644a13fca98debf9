"""Damaged and hostile model folders against the loader: only errors of raysearch may come out.

Files of a small exported folder are mutated and the manifest's hashes are made to fit, so that the parsers
are what is tested. Memory is limited to 2 GiB beyond what the process has at the start. Writes
results/fuzz_loader.md.

    python -m benchmarks.fuzz_loader [--count 10000] [--seed 0]
"""

from __future__ import annotations

import argparse
import collections
import copy
import hashlib
import json
import random
import resource
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raysearch.api import inspect  # noqa: F401  (imported before memory is limited)
from raysearch.errors import RaysearchError
from raysearch.export import load_model

SPARE_BYTES = 2 << 30
INTERESTING = [
    None, True, False, 0, 1, -1, 2, 3, 9, 255, 2**31, 2**63, -(2**63), 10**30, 1e300, 0.5, "", "a", "a.b",
    "..", "stored", "forward", "F32", "F8_E4M3", "torch.ops.aten.from_file.default", "_operator.call",
    "Pow(9, 9)", "\u0000", [], {}, [[]], [0, 2**40], [2**20, 2**20], {"as_int": 2**50}, {"a": 1},
]  # fmt: skip


def mutate(data: bytes, name: str, other: bytes, rng: random.Random) -> bytes:
    """One damaged version of a file."""
    kinds = ["flip", "cut", "insert", "swap", "repeat"]
    if name.endswith(".json"):
        kinds += ["json"] * 8
    elif name.endswith(".safetensors"):
        kinds += ["length", "header", "header", "header", "header"]
    else:
        kinds += ["member"] * 8
    kind = rng.choice(kinds)
    if kind == "flip":
        changed = bytearray(data)
        for _ in range(rng.choice((1, 2, 16))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    if kind == "cut":
        return data[: rng.randrange(len(data))]
    at = rng.randrange(len(data))
    if kind == "insert":
        return data[:at] + rng.randbytes(rng.choice((1, 8, 100))) + data[at:]
    if kind == "swap":
        return other
    if kind == "repeat":
        return data[:at] + data[max(0, at - 64) : at] * rng.choice((1, 200)) + data[at:]
    if kind == "json":
        return _mutate_json(data, rng)
    if kind == "length":
        return (
            rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(data), 100_000_000)).to_bytes(8, "little")
            + data[8:]
        )
    if kind == "header":
        length = int.from_bytes(data[:8], "little")
        header = _mutate_json(data[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    return _mutate_member(data, rng)


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.02:
        return b"[" * 100_000
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 3))):
        holder: Any = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(holder[key], dict | list) and holder[key] and rng.random() < 0.85:
                holder = holder[key]
                continue
            action = rng.random()
            if action < 0.15:
                del holder[key]
            elif action < 0.25 and isinstance(holder, dict):
                holder[str(rng.choice(("", "a..b", "training", "x" * 300, f"{key}.x")))] = holder.pop(key)
            elif action < 0.35 and isinstance(holder[key], int):
                holder[key] = holder[key] + rng.choice((-1, 1, 7))
            else:
                holder[key] = copy.deepcopy(rng.choice(INTERESTING))
            break
    return json.dumps(document).encode()


def _mutate_member(data: bytes, rng: random.Random) -> bytes:
    sink = BytesIO()
    with (
        zipfile.ZipFile(BytesIO(data)) as archive,
        zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as changed,
    ):
        members = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        chosen = rng.choice(members)[0] if rng.random() < 0.4 else "archive/models/model.json"
        for name, content in members:
            if name == chosen:
                action = rng.random()
                if action < 0.05:
                    continue
                if action < 0.1:
                    name = rng.choice(("archive/extra/x", "archive/models/other.json", "../x", "x"))
                elif name.endswith(".json"):
                    content = _mutate_json(content, rng)
                else:
                    content = rng.choice((b"", b"9" * 40, content[:-1], b"\x00" * 100_000))
            changed.writestr(name, content)
    return sink.getvalue()


def damage(source: Path, target: Path, rng: random.Random) -> str:
    """Write a damaged copy of a folder whose manifest fits; gives the name of the damaged file."""
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    name = rng.choice(("model.safetensors", "config.json", "architecture.pt2", "manifest.json"))
    other = files[rng.choice(sorted(files))]
    files[name] = mutate(files[name], name, other, rng)
    if name != "manifest.json":
        manifest = json.loads(files["manifest.json"])
        for entry in manifest["files"]:
            content = files[entry["path"]]
            entry["sha256"], entry["size_bytes"] = hashlib.sha256(content).hexdigest(), len(content)
        files["manifest.json"] = json.dumps(manifest).encode()
    target.mkdir(exist_ok=True)
    for file, content in files.items():
        (target / file).write_bytes(content)
    return name


def small_folder(folder: Path) -> Path:
    """A model folder of one layer, with a constant in its graph."""
    from raysearch.export import export_model
    from tests.export.nets import case

    net = case("fixed", batch=5)
    export_model(net.stripped, net.setup, net.assignment, net.example, folder, targets=["packed"])
    return folder


def small_network() -> nn.Module:
    """The float network of `small_folder`."""
    from tests.export.nets import NETS

    return NETS["fixed"][0]()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        report(Path(scratch), options.count, options.seed)


def report(scratch: Path, count: int, seed: int) -> None:
    source = small_folder(scratch / "source")
    load_model(source)
    load_model(source, small_network)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest, start = 0.0, time.perf_counter()
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name = damage(source, scratch / "damaged", rng)
        began = time.perf_counter()
        try:
            load_model(scratch / "damaged", small_network if number % 4 == 0 else None)
            outcome = "loaded"
        except RaysearchError as error:
            outcome = type(error).__name__
        except BaseException as error:
            print(f"input {number} of seed {seed}, {name}: {error!r:.300}", flush=True)
            outcome = f"ESCAPED {type(error).__name__}"
        slowest = max(slowest, time.perf_counter() - began)
        found[name, outcome] += 1
        if number % 1000 == 999:
            print(number + 1, "inputs", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    seconds = time.perf_counter() - start
    summary = (
        f"`python -m benchmarks.fuzz_loader --count {count} --seed {seed}`, torch {torch.__version__}, "
        f"{torch.get_num_threads()} thread: {count} inputs in {seconds:.0f} s, the slowest {slowest:.1f} s, peak "
        f"memory {peak} MiB. Every fourth input is loaded with a factory. Hashes in the manifest fit the damaged "
        f"file. 'loaded' is damage that changes only values, or nothing."
    )
    lines = [
        "# The loader against damaged folders",
        "",
        summary,
        "",
        "| damaged file | outcome | inputs |",
        "|---|---|---|",
        *(f"| {name} | {outcome} | {number} |" for (name, outcome), number in sorted(found.items())),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if count >= 1000:
        (Path(__file__).parent / "results" / "fuzz_loader.md").write_text(text)


if __name__ == "__main__":
    main()
