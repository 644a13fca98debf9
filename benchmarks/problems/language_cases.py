"""Language models that are quantized, the text that they read, and the settings of their runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import raysearch
from raysearch.huggingface import ModelDirectory, causal_lm_task
from raysearch.huggingface.text import TokenWindows, WindowMaker

EXAMPLES = Path(__file__).parents[2] / "examples"
WINDOW = 128


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
    def measuring(self) -> dict[str, Any]:
        """Settings of the run that measures what every option does, and little else."""
        rounding = {**self.config.get("rounding", {}), "refine": []}
        search = {**self.config["search"], "num_trials": 1}
        return {**self.config, "rounding": rounding, "search": search, "training": {"epochs": 0}}


def language_task(folder: Path) -> tuple[raysearch.Task, dict[str, Tensor]]:
    """A model directory with Python's help topics, and the windows of every part of them."""
    sys.path.insert(0, str(EXAMPLES / "tiny_lm"))
    from topics import load_texts

    texts = load_texts()
    task = causal_lm_task(
        folder,
        texts["calibration"],
        validation_text=texts["validation"],
        test_text=texts["test"],
        window=WINDOW,
    )
    maker = WindowMaker.of(ModelDirectory(folder), task.model, WINDOW)
    windows = {part: maker.windows(text, part) for part, text in texts.items()}
    return replace(task, model=task.model.float()), windows


def tiny_lm() -> Case:
    """The language model of examples/tiny_lm."""
    task, windows = language_task(EXAMPLES / "tiny_lm" / "model")
    task = replace(task, train=TokenWindows(input_ids=windows["train"]))
    config = settings(("2g32a", "3g32", "3g32a", "4g64", "4g32", "4g32a", "5g64", "6g64"))
    config["calibration"] = {"num_samples": 64, "shard_size": 8}
    config["search"] = {"num_samples": 64, "shard_size": 8, "num_trials": 24}
    config["training"] = {
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 2e-5,
        "scale_learning_rate": 1e-4,
        "gradient_checkpointing": True,
    }
    title = "examples/tiny_lm: a Llama of 1.8 million weights, 28 of its layers"
    return Case(
        "tiny_lm", title, task, windows, ("4g64", "4g32", "3g32"), config, scored=16, refines_uniform=True
    )


def gemma(folder: Path) -> Case:
    """Gemma 3 270M in the directory that examples/gemma_270m makes; few windows, since they cost seconds."""
    task, windows = language_task(folder)
    windows["test"] = windows["test"][:16]
    config = settings(("3g128", "3g32", "4g128", "4g32", "6g128"))
    # What vLLM serves: symmetric, and layers that it fuses share a scheme.
    config["placement"]["profile"] = "vllm"
    config["calibration"] = {"num_samples": 24, "shard_size": 1}
    config["validation"] = {"num_samples": 8, "shard_size": 1}
    config["search"] = {"num_samples": 0, "shard_size": 1, "num_trials": 8}
    config["sensitivity"] = {"max_draws": 2, "trace_samples": 1, "response_shards": 1, "option_chunk": 20}
    config["rounding"] = {
        "scale_factors": [0.9, 1.0, 1.15],
        "refits": 0,
        "refine": ["tune"],
        "refine_steps": 16,
    }
    config["training"] = {"epochs": 0}
    title = "Gemma 3 270M (examples/gemma_270m), the 126 layers of its decoder"
    return Case("gemma", title, task, windows, ("4g128", "4g32", "3g32"), config, 2, refines_uniform=False)


def settings(schemes: tuple[str, ...]) -> dict[str, Any]:
    """Weights of the decoder's layers alone; one draw of traces, which nothing but a warm start reads."""
    return {
        "placement": {
            "weight_schemes": list(schemes),
            "activation_bit_widths": [],
            "target_scopes": ["model.layers*"],
            "scale_dtype": "bfloat16",
        },
        "sensitivity": {"max_draws": 2, "trace_samples": 2, "response_shards": 4},
        "export": {"targets": ["packed"]},
        "cluster": {"workers": 0},
    }
