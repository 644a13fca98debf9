"""Language models that are quantized, the text that they read, and the settings of their runs."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from torch import Tensor

import raysearch
from raysearch.task import load_task

EXAMPLES = Path(__file__).parents[2] / "examples"


@dataclass(frozen=True)
class Case:
    """A model with its text.

    Attributes:
        name: as on the command line.
        title: as on the page.
        task: the model in float32; nothing of its loss is known.
        windows: part of the text → token ids [windows, tokens]; a task may use fewer.
        sizes: the uniform schemes whose bytes are the budgets.
        config: settings of the run.
        scored: calibration windows of the first-order scores.
        refines_uniform: whether uniform schemes are refined too, which costs as much as ours.
    """

    name: str
    title: str
    task: raysearch.Task
    windows: dict[str, Tensor]
    sizes: tuple[str, ...]
    config: dict[str, Any]
    scored: int
    refines_uniform: bool

    @property
    def refines(self) -> bool:
        """Whether a run with these settings refines its winner."""
        return bool(self.config.get("rounding", {}).get("refine", True))

    @property
    def is_nearest(self) -> bool:
        """Whether all codes are the nearest ones."""
        return self.config.get("rounding", {}).get("method") == "nearest"

    @property
    def measuring(self) -> dict[str, Any]:
        """Settings of the run that measures what every option does, and little else."""
        rounding = {**self.config.get("rounding", {}), "refine": []}
        search = {**self.config["search"], "num_trials": 1}
        return {**self.config, "rounding": rounding, "search": search, "training": {"epochs": 0}}


def language_task(folder: Path, *, is_widened: bool = True) -> tuple[raysearch.Task, dict[str, Tensor]]:
    """A model directory with Python's help topics, and the windows of every part of them.

    Args:
        folder: as `save_pretrained` writes it.
        is_widened: whether the model is in float32, whatever its file holds.
    """
    task = load_task(f"{EXAMPLES}/tiny_lm/task.py:make_task?{urlencode({'model': folder})}")
    parts = {part: getattr(task, part) for part in ("test", "validation", "calibration", "train")}
    windows = {part: rows.columns["input_ids"] for part, rows in parts.items()}
    if is_widened:
        task = replace(task, model=task.model.float())
    return task, windows


def tiny_lm() -> Case:
    """The language model of examples/tiny_lm, with its settings."""
    folder = EXAMPLES / "tiny_lm"
    task, windows = language_task(folder / "model")
    title = "examples/tiny_lm: a Llama of 1.8 million weights, 28 of its layers"
    sizes = ("4g64", "4g32", "3g32")
    config = settings(folder / "settings.toml")
    return Case("tiny_lm", title, task, windows, sizes, config, scored=16, refines_uniform=True)


def gemma(folder: Path) -> Case:
    """Gemma 3 270M in the directory that examples/gemma_270m makes; few windows: each costs a second."""
    task, windows = language_task(folder)
    task = replace(task, train=None)
    windows["test"] = windows["test"][:16]
    title = "Gemma 3 270M (examples/gemma_270m), the 126 layers of its decoder"
    sizes = ("4g128", "4g32", "3g32")
    config = settings(EXAMPLES / "gemma_270m" / "settings.toml")
    return Case("gemma", title, task, windows, sizes, config, scored=2, refines_uniform=False)


def gemma_gguf(folder: Path) -> Case:
    """The same model in types of GGUF, at the bytes of one that every layer can be."""
    title = "Gemma 3 270M in types of GGUF by nearest codes, the 126 layers of its decoder"
    config = settings(EXAMPLES / "gemma_270m" / "llama_cpp.toml")
    return replace(gemma(folder), name="gemma_gguf", title=title, sizes=("q4_0",), config=config)


def gemma_gptq(folder: Path) -> Case:
    """The same types, rounded by GPTQ at few scales."""
    case = gemma_gguf(folder)
    title = "Gemma 3 270M in types of GGUF by GPTQ, the 126 layers of its decoder"
    rounding = {"scale_factors": [0.9, 1.0, 1.15], "refits": 0, "refine": []}
    return replace(case, name="gemma_gptq", title=title, config={**case.config, "rounding": rounding})


CASES = {"gemma": gemma, "gemma_gguf": gemma_gguf, "gemma_gptq": gemma_gptq}
"""Name → makes the case from Gemma's directory."""


def settings(path: Path) -> dict[str, Any]:
    """An example's settings, with the one file that the benchmark needs, in this process."""
    sections = tomllib.loads(path.read_text())
    return {
        **sections,
        "export": {"targets": ["packed"]},
        "cluster": {**sections.get("cluster", {}), "workers": 0},
    }
