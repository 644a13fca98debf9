"""Files that a person gives: profiles, assignments, traces, a model's directory; and a training's states."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from raysearch.artifacts import Storage, hashed
from raysearch.compression.initializer import read_traces
from raysearch.config import load_config
from raysearch.controller.manual import read_entries
from raysearch.export.gguf.tokenizer import read_vocabulary
from raysearch.huggingface.directory import ModelDirectory
from raysearch.placement.profile import load_profile
from raysearch.training.progress import CheckpointFolder, Progress
from tests.chaos.mutations import damaged_bytes, damaged_json, damaged_safetensors, damaged_text
from tests.support.run_records import make_setup

LATENCY = {
    "layers": {"fc.weight": {"float": 2e-3, "8": 1e-3, "w4a8": 5e-4}},
    "other_seconds": 0.1,
    "machine": {"cpu": "x"},
    "versions": {"torch": "2"},
    "kernels": {"fc.weight": {"float": "gemm"}},
    "checks": {"float": {"sum": 1.0}},
}
ASSIGNMENT = {"assignment": {"conv.weight": 4, "fc.weight": "4g64"}}
ENTRIES = {
    "bitwidth_per_scope": [[4, "blocks.0.linear.weight"], ["4g64", "ToyNet/Linear[fc]/linear_0|WEIGHT"]]
}
MODEL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "auto_map": {}, "hidden_size": 8}
PROFILE = """description = "own"
scale_dtype = "float16"
fusion = ["parallel"]
[default]
weights = [4, 8]
activations = [8]
weight_modes = ["symmetric"]
[linear]
pairs = [[4, 8], [8, 8]]
group_sizes = [32, 64]
input_multiple = 16
input = true
modules = ["fc"]
"""
TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "byte_fallback": False},
    "added_tokens": [{"id": 3, "content": "<s>", "special": True}],
    "normalizer": {"type": "Prepend"},
    "pre_tokenizer": {"type": "ByteLevel", "use_regex": True},
}

Draw = tuple[str, Callable[[], Any]]
"""What is shown of an input, and what reads it."""


class GivenFiles:
    """Draws such files and has them read; each method takes one draw and gives what was read how.

    Args:
        scratch: a folder for files.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._setup = make_setup(3)

    def latency_file(self, draw: random.Random) -> Draw:
        """Of `search.latency_profile`."""
        path = self._written("latency.json", LATENCY, draw)
        return self._shown(path), lambda: load_config(assignments=[f"search.latency_profile={path}"])

    def assignment_file(self, draw: random.Random) -> Draw:
        """Of `search.enqueue`."""
        path = self._written("best.json", ASSIGNMENT, draw)
        return self._shown(path), lambda: load_config(assignments=[f'search.enqueue=["{path}"]'])

    def scopes_file(self, draw: random.Random) -> Draw:
        """NNCF's `bitwidth_per_scope`."""
        path = self._written("scopes.json", ENTRIES, draw)
        return self._shown(path), lambda: read_entries(path)

    def traces_file(self, draw: random.Random) -> Draw:
        """NNCF's `traces_per_layer`."""
        traces = dict.fromkeys(self._setup.of_kind("weight"), 1.5)
        path = self._written("traces.json", traces, draw)
        return self._shown(path), lambda: read_traces(path, self._setup)

    def profile_file(self, draw: random.Random) -> Draw:
        """A hardware profile of one's own."""
        path = self._scratch / "profile.toml"
        path.write_bytes(damaged_text(PROFILE, draw).encode(draw.choice(("utf-8", "utf-16")), "replace"))
        return self._shown(path), lambda: load_profile(str(path))

    def model_directory(self, draw: random.Random) -> Draw:
        """The config.json of a Hugging Face directory; no weights are loaded."""
        folder = self._scratch / "model"
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").touch()
        path = self._written("model/config.json", MODEL, draw)
        return self._shown(path), lambda: ModelDirectory(folder).config

    def tokenizer_file(self, draw: random.Random) -> Draw:
        """The tokenizer.json that the target 'gguf' reads."""
        path = self._written("tokenizer.json", TOKENIZER, draw)
        return self._shown(path), lambda: read_vocabulary(self._scratch, 8)

    def training_state(self, draw: random.Random) -> Draw:
        """The state of a training: damaged bytes, and wrong values that have the right hash."""
        folder = self._scratch / "training"
        CheckpointFolder(Storage(folder)).save(Progress(1, 2, 3, best_state=b"best"), {"x": torch.ones(3)})
        path = folder / "step-00000003.safetensors"
        data = path.read_bytes()
        if draw.random() < 0.5:
            path.write_bytes(damaged_bytes(data, draw))
        else:
            path.write_bytes(hashed(damaged_safetensors(data[:-24], draw)))
        return self._shown(path), lambda: CheckpointFolder(Storage(folder)).latest()

    def _written(self, name: str, value: Any, draw: random.Random) -> Path:
        path = self._scratch / name
        data = damaged_json(json.dumps(value).encode(), draw)
        path.write_bytes(damaged_bytes(data, draw) if draw.random() < 0.1 else data)
        return path

    @staticmethod
    def _shown(path: Path) -> str:
        return repr(path.read_bytes()[:200])


GIVEN = (
    "latency_file", "assignment_file", "scopes_file", "traces_file", "profile_file", "model_directory",
    "tokenizer_file", "training_state",
)  # fmt: skip
"""The methods of `GivenFiles` that draw an input."""
