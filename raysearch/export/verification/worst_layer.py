"""Which layer of an ONNX file computes something else than the stripped module.

Every layer of the file, run in float, is given the very codes that the module's quantizers gave it, so what
differs there arose in that layer and in none before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysearch.evaluation import Batch, Forward
from raysearch.evaluation.forward import frozen_eval
from raysearch.export.onnx_qdq.file_module import Arrays
from raysearch.export.onnx_qdq.session import load_session
from raysearch.export.verification.code_flips import cut_at, cut_input
from raysearch.export.verification.flip_counts import FlipCounts
from raysearch.export.verification.verify import MAX_FLIP_RATE
from raysearch.quantizer import Quantizer
from raysearch.records import LayerFlips

if TYPE_CHECKING:
    from onnx import GraphProto

MOVES = ("Min", "Max", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


def compare_layers(
    path: Path, model: nn.Module, batches: list[Batch], feeds: list[Arrays], forward: Forward
) -> tuple[LayerFlips, ...]:
    """Compare codes that the file's layers compute with those of a module's quantizers.

    Args:
        path: a file of the target `onnx`.
        model: the stripped module; it is left as it was.
        batches: what to run on.
        feeds: the same as arrays by input name of the file.
        forward: (model, batch) → outputs.

    Returns:
        One entry for each activation quantizer that both have, in graph order: codes that differ, all codes,
        and the greatest difference in steps. Nothing where the module has none of the file's quantizers.
    """
    import onnx

    if len(batches) != len(feeds):
        return ()

    file = onnx.load(path)
    names = _read_codes(file.graph)
    session = load_session(cut_at(file, names).SerializeToString(), optimized=False)
    required = {entry.name for entry in session.get_inputs()}
    counts = FlipCounts()
    for batch, feed in zip(batches, feeds, strict=True):
        with _recorded(model) as codes, frozen_eval(model), torch.no_grad():
            forward(model, batch)
        module_codes = {cut_input(value): codes[name] for value, name in names.items() if name in codes}
        available = {**feed, **module_codes}
        if not required <= set(available):
            return ()
        inputs = {name: array for name, array in available.items() if name in required}
        for name, file_codes in zip(names.values(), session.run(list(names), inputs), strict=True):
            # Where a quantizer moved over a reshape, codes of the two cannot be told apart one by one.
            if name in codes and codes[name].shape == file_codes.shape:
                counts.add(name, codes[name], file_codes)
    return counts.layers()


def tell_worst(layers: tuple[LayerFlips, ...]) -> str:
    """What `compare_layers` found, as a statement on its worst layer."""
    if not layers:
        return ""
    worst = max(layers, key=lambda layer: ((layer.rate > MAX_FLIP_RATE) * layer.max_steps, layer.rate))
    figures = (
        f"{worst.num_flips} of {worst.num_codes} codes differ from the module's by up to {worst.max_steps} "
        f"steps, each layer being given the module's own codes; allowed is {MAX_FLIP_RATE:.1%}"
    )
    if worst.rate > MAX_FLIP_RATE:
        return f"The worst layer is '{worst.name}': {figures}"
    return f"No layer before the last quantizer is at fault; of the worst, '{worst.name}', {figures}"


def _read_codes(graph: GraphProto) -> dict[str, str]:
    """Value of codes that a DequantizeLinear reads → name of the QuantizeLinear it comes from.

    There the codes have the shape that the module's quantizer sees: a quantizer may have moved up.
    """
    makers = {name: node for node in graph.node for name in node.output}
    quantizers: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in MOVES:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":
            quantizers[node.input[0]] = maker.name
    return quantizers


@contextmanager
def _recorded(model: nn.Module) -> Iterator[Arrays]:
    """Codes of every call of an activation quantizer, as the file holds them, by the names it gives them."""
    codes: dict[str, npt.NDArray[Any]] = {}
    calls: Counter[str] = Counter()

    def record(quantizer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(quantizer, Quantizer)
        calls[quantizer.name] += 1
        count = calls[quantizer.name]
        name = quantizer.name + (f"#{count}" if count > 1 else "")
        moved = quantizer.codes(inputs[0]).to(torch.int16) - quantizer.levels[0]
        codes[name] = moved.to(torch.uint8).contiguous().numpy()

    hooks = [
        module.register_forward_hook(record)
        for module in model.modules()
        if isinstance(module, Quantizer) and module.kind == "activation" and module.enabled
    ]
    try:
        yield codes
    finally:
        for hook in hooks:
            hook.remove()
