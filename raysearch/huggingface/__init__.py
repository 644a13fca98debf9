"""Tasks made of Hugging Face directories: a model that `transformers` loads, with text or images."""

from raysearch.huggingface.directory import ModelDirectory
from raysearch.huggingface.language_models import causal_lm_task

__all__ = ["ModelDirectory", "causal_lm_task"]
