"""Nets that are searched and then trained, with their data and settings."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import raysearch
from benchmarks.problems.peer_scores import next_token_loss
from raysearch.task import load_task

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Problem:
    """A net with its data, and how it is searched and trained.

    Attributes:
        title: as on the page.
        task: makes it.
        config: settings of the run.
        budgets: that are searched.
        measures: what is shown, each with the factor that it is shown by.
        uniform: schemes of uniform assignments that are trained beside.
        without: recipes that it has no use for.
    """

    title: str
    task: Callable[[], raysearch.Task]
    config: dict[str, Any]
    budgets: tuple[str, ...]
    measures: tuple[tuple[str, float], ...]
    uniform: tuple[int | str, ...] = ()
    without: tuple[str, ...] = ()


def example(folder: str) -> raysearch.Task:
    """The task of an example."""
    return load_task(f"{ROOT}/examples/{folder}/task.py:make_task")


def fashion() -> raysearch.Task:
    """With the test images, which nothing is chosen by."""
    task = example("fashion_mnist")
    from fashion_mnist import load_data

    return replace(task, test=load_data()[2])


def language_loss(outputs: Any, batch: Any) -> Tensor:
    """Cross-entropy of the next token."""
    logits = getattr(outputs, "logits", outputs)
    return next_token_loss(logits.log_softmax(-1), batch["input_ids"]).mean()


def language() -> raysearch.Task:
    """With a loss of its own."""
    return replace(example("tiny_lm"), loss=language_loss)


def tiny_lm_config() -> dict[str, Any]:
    """Those of the example, distilling for some minutes."""
    config = tomllib.loads((ROOT / "examples" / "tiny_lm" / "settings.toml").read_text())
    config["training"].update(objective="distill", epochs=0, steps=100)
    return config


NORMS_AND_ACTIVATIONS = ("statistics taken anew", "statistics freeze at 3/4", "activations from 1/4 on")
"""Recipes for nets with BatchNorm or quantized activations."""
SMALL = {"weight_bit_widths": [2, 3, 4, 8], "activation_bit_widths": [8]}
PROBLEMS = {
    "digits": Problem(
        "examples/digits, a convolutional net on 1,200 digits, 10 epochs; judged on 597 validation digits",
        lambda: example("digits"),
        {"placement": SMALL, "training": {"objective": "loss"}},
        ("avg_bits<=2.25", "avg_bits<=3"),
        (("loss", 1), ("accuracy", 100)),
        (2, 3),
        ("features of blocks",),
    ),
    "tiny_lm": Problem(
        "examples/tiny_lm, a Llama of 1.8 million weights, 100 steps of 8 windows; judged on unseen text. "
        "Its default is distillation with scales at 0.0001",
        language,
        tiny_lm_config(),
        ("avg_bits<=3",),
        (("divergence", 1000),),
        without=("distillation of logits", "distillation, all rates × 0.1", *NORMS_AND_ACTIVATIONS),
    ),
    "fashion": Problem(
        "examples/fashion_mnist, a ResNet-20 on 55,000 images, 1 epoch in batches of 128; judged on 10,000 "
        "test images (the float net has 92.28 %)",
        fashion,
        {
            "placement": SMALL,
            "search": {"num_samples": 1000, "shard_size": 250, "num_trials": 32},
            "training": {"objective": "loss", "epochs": 1, "batch_size": 128},
        },
        ("avg_bits<=3", "avg_bits<=2.5", "avg_bits<=2.25"),
        (("accuracy", 100), ("loss", 1)),
        (2, 3),
    ),
}
