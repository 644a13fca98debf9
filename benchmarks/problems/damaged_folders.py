"""A small model folder, and damaged copies of it whose hashes fit: what is tested is the parsers."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysearch.calibration import calibrate_model
from raysearch.config import CalibrationConfig, ExportConfig
from raysearch.controller import create_controller
from raysearch.export import StrippedModel, export_model
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment

BATCH = 5

INTERESTING: list[Any] = [
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


class OneLayer(nn.Module):
    """A layer, and a constant in the graph, which fixes the size of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.arange(3.0 * BATCH).reshape(BATCH, 3)


def small_folder(folder: Path) -> Path:
    """A model folder of `OneLayer`, its weight in 4 bits."""
    torch.manual_seed(0)
    model, example = OneLayer().eval(), (torch.randn(BATCH, 4),)
    setup = place_quantizers(model, example)
    ranges = calibrate_model(model, setup, [example], CalibrationConfig(num_samples=BATCH, shard_size=BATCH))
    assignment = BitAssignment.uniform(setup, 4)
    controller = create_controller(model, setup, ranges, assignment)
    stripped = StrippedModel(controller.strip_model(), setup, assignment, example)
    export_model(stripped, folder, ExportConfig(targets=("packed",)))
    return folder
