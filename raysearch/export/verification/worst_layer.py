"""Which layer of an ONNX file computes something else than the stripped module.

Every layer of the file, run in float, is given the very codes that the module's quantizers gave it, so what
differs there arose in that layer and in none before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysearch.evaluation import Batch, Forward
from raysearch.evaluation.forward import frozen_eval
from raysearch.export.onnx_qdq.session import load_session
from raysearch.export.verification.code_flips import Arrays, cut_at
from raysearch.export.verification.verify import MAX_FLIP_RATE
from raysearch.quantizer import Quantizer
from raysearch.records import LayerFlips

MOVES = ("Min", "Max", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")


def compare_layers(
    path: Path, model: nn.Module, batches: list[Batch], feeds: list[Arrays], forward: Forward
) -> tuple[LayerFlips, ...]:
    """Compare codes that the file's layers compute with those of a module's quantizers.

    Args:
        path: a file of `write_onnx`.
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
    wanted = {entry.name for entry in session.get_inputs()}
    totals: dict[str, list[int]] = {}
    for batch, feed in zip(batches, feeds, strict=True):
        with _recorded(model) as codes, frozen_eval(model), torch.no_grad():
            forward(model, batch)
        given = {f"{value}.given": codes[name] for value, name in names.items() if name in codes}
        if not wanted <= {*feed, *given}:
            return ()
        found = session.run(list(names), {k: v for k, v in {**feed, **given}.items() if k in wanted})
        for name, ours in zip(names.values(), found, strict=True):
            if name not in codes or codes[name].shape != ours.shape:
                continue
            steps = np.abs(codes[name].astype(np.int16) - ours)
            total = totals.setdefault(name, [0, 0, 0])
            total[0] += int(np.count_nonzero(steps))
            total[1] += steps.size
            total[2] = max(total[2], int(steps.max(initial=0)))
    return tuple(LayerFlips(name, *total) for name, total in totals.items())


def tell_worst(layers: tuple[LayerFlips, ...]) -> str:
    """What `compare_layers` found, as a statement on its worst layer."""
    if not layers:
        return ""
    worst = max(layers, key=lambda layer: ((layer.rate > MAX_FLIP_RATE) * layer.max_steps, layer.rate))
    told = (
        f"{worst.num_flips} of {worst.num_codes} codes differ from the module's by up to {worst.max_steps} "
        f"steps, each layer being given the module's own codes; allowed is {MAX_FLIP_RATE:.1%}"
    )
    if worst.rate > MAX_FLIP_RATE:
        return f"The worst layer is '{worst.name}': {told}"
    return f"No layer before the last quantizer is at fault; of the worst, '{worst.name}', {told}"


def _read_codes(graph: Any) -> dict[str, str]:
    """Value of codes that a DequantizeLinear reads → name of the QuantizeLinear it comes from.

    There the codes have the shape that the module's quantizer sees: a quantizer may have moved up.
    """
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        maker = makers.get(node.input[0])
        while maker is not None and maker.op_type in MOVES:
            maker = makers.get(maker.input[0])
        if maker is not None and maker.op_type == "QuantizeLinear":
            found[node.input[0]] = maker.name
    return found


@contextmanager
def _recorded(model: nn.Module) -> Iterator[Arrays]:
    """Codes of every call of an activation quantizer, as the file holds them, by the names it gives them."""
    codes: dict[str, npt.NDArray[Any]] = {}
    calls: Counter[str] = Counter()

    def keep(quantizer: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(quantizer, Quantizer)
        calls[quantizer.name] += 1
        count = calls[quantizer.name]
        name = quantizer.name + (f"#{count}" if count > 1 else "")
        moved = quantizer.codes(given[0]).to(torch.int16) - quantizer.levels[0]
        codes[name] = moved.to(torch.uint8).contiguous().numpy()

    hooks = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if isinstance(module, Quantizer) and module.kind == "activation" and module.enabled
    ]
    try:
        yield codes
    finally:
        for hook in hooks:
            hook.remove()
