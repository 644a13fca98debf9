"""The kinds of tasks that a model directory can be of, each with the function that makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raysearch.huggingface.classification import image_classification_task, sequence_classification_task
from raysearch.huggingface.language_models import causal_lm_task, masked_lm_task
from raysearch.task import Task

TASK_KINDS: Mapping[str, Callable[..., Task]] = {
    "causal-lm": causal_lm_task,
    "masked-lm": masked_lm_task,
    "sequence-classification": sequence_classification_task,
    "image-classification": image_classification_task,
}
"""Name → function (directory, data, …); further options are its keyword arguments."""
