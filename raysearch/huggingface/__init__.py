"""Tasks made of Hugging Face directories: a model that `transformers` loads, with text or images."""

from raysearch.huggingface.classification import image_classification_task, sequence_classification_task
from raysearch.huggingface.directory import ModelDirectory
from raysearch.huggingface.language_models import causal_lm_task, masked_lm_task

__all__ = [
    "ModelDirectory",
    "causal_lm_task",
    "image_classification_task",
    "masked_lm_task",
    "sequence_classification_task",
]
