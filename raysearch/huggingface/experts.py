"""Experts of a mixture: parameters [experts, outputs, inputs], of which each token reads a part."""

from __future__ import annotations

from typing import Any

from torch import nn

from raysearch.errors import TaskError

MOST_GATHERED = 2**31
"""Bytes of the matrices that the tokens of a window read in a layer."""

IN_OWN_OPERATIONS = "batched_mm"
"""What transformers calls the way in torch's operations alone: the matrices of each token are copied."""


def gather_experts(model: nn.Module, length: int) -> None:
    """Let the experts of a mixture run in operations that can be captured and stored.

    By default transformers runs them as an operation of its own, which no file can bring along.

    Args:
        model: of transformers.
        length: tokens in a window.

    Raises:
        TaskError: the copies would be too large.
    """
    mixture: Any = model
    if not hasattr(mixture, "set_experts_implementation"):
        return
    per_token = getattr(mixture.config.get_text_config(), "num_experts_per_tok", None) or 0
    one_expert = max(_bytes_of_one(module) for module in model.modules())
    gathered = length * per_token * one_expert
    if gathered > MOST_GATHERED:
        longest = MOST_GATHERED // (per_token * one_expert)
        mend = f"Take a window of at most {longest} tokens, or" if longest > 1 else "Take"
        raise TaskError(
            f"{type(model).__name__} is a mixture of experts. Those stay float here, and a graph that can be "
            f"captured copies the {per_token} that a token reads: {gathered / 2**30:,.1f} GiB a window of "
            f"{length} tokens, where at most {MOST_GATHERED / 2**30:g} GiB are allowed. {mend} a model "
            f"without experts."
        )
    if gathered:
        mixture.set_experts_implementation(IN_OWN_OPERATIONS)


def _bytes_of_one(module: nn.Module) -> int:
    """One expert's matrices in float32, of those that a module holds itself."""
    stacked = [weight for weight in module.parameters(recurse=False) if weight.ndim == 3]
    return sum(4 * weight[0].numel() for weight in stacked)
