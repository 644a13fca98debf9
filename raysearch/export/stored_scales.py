"""Scales of weights as the packed target stores them: each in its type, or as a stream where they share one.

The stream of scales that are integers times a float16 of their block: the float16s, then the integers as
`packing` has them, both in the order of the scales.

n  blocks    k  scales of a block
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raysearch.errors import ExportError, StorageError
from raysearch.export.packing import pack_codes, unpack_codes
from raysearch.quantizer.shared_steps import shared_steps
from raysearch.records.scale_format import SCALE_FORMATS, ScaleFormat


def encode_scales(scale: Tensor, scale_format: str, name: str) -> Tensor:
    """The tensor that is stored, one dimension.

    Args:
        scale: as they are in force.
        scale_format: one of `SCALE_FORMATS`.
        name: the weight, for messages.

    Raises:
        ExportError: the format does not hold them.
    """
    stored = SCALE_FORMATS[scale_format]
    flat = scale.detach().cpu().reshape(-1)
    if stored.sharing == 1:
        single = flat.to(getattr(torch, scale_format), copy=True)
        if not torch.equal(single.float(), flat):
            raise ExportError(
                f"the scales of '{name}' are to be stored as {scale_format}, which does not hold them; strip "
                f"the model anew."
            )
        return single
    step_n, integers_nk = split_scales(flat.numpy().reshape(-1, stored.sharing), stored.highest, name)
    codes_nk = integers_nk.astype(np.int16) - _code_offset(stored)
    stream = pack_codes(codes_nk, _integer_bits(stored), name)
    return torch.from_numpy(np.concatenate([step_n.astype("<f2").view(np.uint8), stream]))


def decode_scales(tensor: Tensor, scale_format: str, num_scales: int, name: str) -> Tensor:
    """What `encode_scales` stored, float32, one dimension.

    Args:
        tensor: of the type and the number of elements that the format has.
        scale_format: one of `SCALE_FORMATS`.
        num_scales: of the weight.
        name: the weight, for messages.

    Raises:
        StorageError: a block is cut off.
    """
    stored = SCALE_FORMATS[scale_format]
    if stored.sharing == 1:
        return tensor.float()
    if num_scales % stored.sharing:
        raise StorageError(
            f"'{name}' has {num_scales} scales of the form {scale_format}, which come in blocks of "
            f"{stored.sharing}. The file is damaged; retrieve or export it again."
        )
    data = tensor.numpy()
    num_blocks = num_scales // stored.sharing
    step_n = data[: 2 * num_blocks].view("<f2").astype(np.float32)
    integers = unpack_codes(data[2 * num_blocks :], _integer_bits(stored), num_scales, name)
    integers_nk = integers.reshape(-1, stored.sharing).astype(np.float32) + _code_offset(stored)
    scale_nk = step_n[:, None] * integers_nk
    return torch.from_numpy(scale_nk.reshape(-1))


def split_scales(
    scale_nk: npt.NDArray[np.float32], highest: int, name: str = "codes"
) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.uint8]]:
    """The float16 of each block and the integer of each group whose products the scales are.

    Args:
        scale_nk: 0 or more, finite.
        highest: the greatest integer; 1 where a block is one group.
        name: the weight, for messages.

    Raises:
        ExportError: a block has none.
    """
    if highest == 1:
        step_n = scale_nk[:, 0].clip(max=SCALE_FORMATS["float16"].largest).astype(np.float16)
    else:
        step_n = shared_steps(torch.from_numpy(scale_nk.copy()), highest).numpy().astype(np.float16)
    single_n = step_n.astype(np.float32)[:, None]
    integers = np.rint(np.divide(scale_nk, single_n, where=single_n > 0, out=np.zeros_like(scale_nk)))
    integers = integers.clip(0, highest)
    if not np.array_equal(single_n * integers, scale_nk):
        raise ExportError(
            f"'{name}' has scales that are no integers up to {highest} times a float16 of each block; strip "
            f"the model with the scheme that it is exported with."
        )
    return step_n, integers.astype(np.uint8)


def _integer_bits(stored: ScaleFormat) -> int:
    """Bits of an integer: those of a scale less its share of the float16."""
    return stored.bits - 16 // stored.sharing


def _code_offset(stored: ScaleFormat) -> int:
    """What is taken off the integers, so that the highest one is a code of their width."""
    half = 1 << (_integer_bits(stored) - 1)
    return half if stored.highest >= half else 0
