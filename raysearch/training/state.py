"""A model's state as safetensors bytes: no pickle, tied tensors stored once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from raysearch.errors import StorageError


def state_bytes(model: nn.Module) -> bytes:
    """What `state_tensors` gives, in the safetensors format."""
    return bytes(save(state_tensors(model)))


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of every tensor of the state dict on the CPU; of tensors that share memory only the first.

    Extra state that is no tensor is left out: a model of the same build has its own.
    """
    stored: set[tuple[int, tuple[int, ...]]] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in _tensors(model).items():
        # A view of another shape begins at the same address and is another tensor; empty ones have none.
        memory = (value.data_ptr(), tuple(value.shape))
        if value.numel() and memory in stored:
            continue
        stored.add(memory)
        tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors


def load_state(model: nn.Module, data: bytes) -> None:
    """Put back what `state_bytes` took from a model of the same build.

    Raises:
        StorageError: the bytes are damaged, or belong to another model; names the tensors.
    """
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise StorageError(
            f"the checkpoint is damaged: {error}. Run with --resume to train again."
        ) from error
    put_state(model, tensors)


def put_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` took from a model of the same build.

    Raises:
        StorageError: the tensors belong to another model; names them.
    """
    own = _tensors(model)
    unknown = sorted(set(tensors) - set(own))
    missing = _missing(own, tensors)
    common = [name for name in sorted(tensors) if name in own]
    shapes = [name for name in common if own[name].shape != tensors[name].shape]
    if unknown or missing or shapes:
        raise StorageError(
            f"the checkpoint does not fit this model: unknown {unknown[:3]}, missing {missing[:3]}, of "
            f"another shape {shapes[:3]}. It belongs to another setup; run the search for this model."
        )
    with torch.no_grad():
        model.load_state_dict(tensors, strict=False)


def _missing(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of a model's tensors that a state lacks, but for those tied to one that it has."""
    stored = {own[name].data_ptr() for name in tensors if name in own}
    missing: list[str] = []
    for name in sorted(own):
        is_tied = own[name].numel() > 0 and own[name].data_ptr() in stored
        if name not in tensors and not is_tied:
            missing.append(name)
    return missing


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


class Buffers:
    """The buffers that a model has before training: what a forward keeps of a batch beside them is no state.

    Args:
        model: that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = _buffers(model)

    def put_back_remade(self) -> None:
        """Put back buffers that a forward made anew in another shape, and take those away that it added."""
        for (module, key), buffer in _buffers(self._model).items():
            if (module, key) not in self._before:
                del module._buffers[key]
                continue
            earlier = self._before[module, key]
            shapes = [None if tensor is None else tensor.shape for tensor in (earlier, buffer)]
            if shapes[0] != shapes[1]:
                module._buffers[key] = earlier


def _buffers(model: nn.Module) -> dict[tuple[nn.Module, str], Tensor | None]:
    return {(module, key): buffer for module in model.modules() for key, buffer in module._buffers.items()}
