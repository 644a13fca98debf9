"""How much memory the activations of a running model take."""

from __future__ import annotations

from raysearch.records.setup import LiveTensor, QuantizerSetup


def tensor_bytes(tensor: LiveTensor, num_bits: int) -> int:
    """Bytes of one kept tensor, per sample: ⌈n·b/8⌉, and 4·n as float32."""
    return (tensor.num_elements * num_bits + 7) // 8


def live_sets(setup: QuantizerSetup) -> list[tuple[LiveTensor, ...]]:
    """The tensors that are kept at each step, of the steps that hold no subset of another's.

    `activation_memory` is the most that any of these sets takes. Each tensor is kept at the width of the
    quantizer that serves its readers, bit-packed; float32 when that is float, or when something reads it
    unquantized. It is what an executor needs that frees a tensor after its last reader and runs
    normalisation and activation functions in place; workspaces are not counted.
    """
    steps = sorted({tensor.first for tensor in setup.tensors})
    # A set can only be the largest where something was just made, so only those steps count.
    sets = [_live_at(setup, step) for step in steps]
    largest: list[frozenset[int]] = []
    for live in sorted(sets, key=len, reverse=True):
        if not any(live <= other for other in largest):
            largest.append(live)
    return [tuple(setup.tensors[index] for index in sorted(live)) for live in largest]


def _live_at(setup: QuantizerSetup, step: int) -> frozenset[int]:
    """Indices of the tensors that are kept at a step."""
    return frozenset(i for i, tensor in enumerate(setup.tensors) if tensor.first <= step <= tensor.last)
