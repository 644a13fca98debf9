"""The same quantizers on every rank: broadcast from rank 0 in the order of their ids, then verified."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b

import torch
import torch.distributed as dist
from torch import Tensor

from raysearch.errors import ConfigError, PlacementError, RunError
from raysearch.quantizer import Quantizer
from raysearch.records import BitAssignment, QuantizerSetup


def broadcast_assignment(
    setup: QuantizerSetup, assignment: BitAssignment, device: torch.device
) -> BitAssignment:
    """The assignment of rank 0.

    Args:
        setup: of this rank; it must be that of all.
        assignment: of this rank; only that of rank 0 is read.
        device: that the process group sends from.

    Raises:
        ConfigError: there is no process group.
        PlacementError: the ranks hold different setups; nothing was sent.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise ConfigError(
            "distributed() needs a process group; call torch.distributed.init_process_group first."
        )
    fingerprints = _gather(_digest(setup.fingerprint().encode()), device)
    if any(not torch.equal(other, fingerprints[0]) for other in fingerprints):
        raise PlacementError(
            "the ranks hold different quantizer setups, so their quantizers cannot be made equal; build the "
            "same model with the same configuration on every rank."
        )
    # The place of each group's scheme among its own, from 1; 0 where it is off.
    places = torch.zeros(len(setup.groups), dtype=torch.int64, device=device)
    for index, group in enumerate(setup.groups.values()):
        if group.id in assignment.schemes:
            places[index] = 1 + group.schemes.index(assignment.schemes[group.id])
    dist.broadcast(places, 0)
    chosen = zip(setup.groups.values(), places.tolist(), strict=True)
    return BitAssignment({group.id: group.schemes[place - 1] for group, place in chosen if place})


def broadcast_quantizers(quantizers: Mapping[str, Quantizer], device: torch.device) -> None:
    """Give every rank the ranges, signs and switches of rank 0.

    Args:
        quantizers: id → quantizer; they take the state of rank 0. On all ranks they are made for the same
            schemes.
        device: that the process group sends from.

    Raises:
        RunError: a quantizer differs after the broadcast.
    """
    for name in sorted(quantizers):
        state = quantizers[name].state_dict()
        for key, value in state.items():
            sent = value.detach().clone().to(device)
            dist.broadcast(sent, 0)
            state[key] = sent.to(value.device)
        quantizers[name].load_state_dict(state)
    verify_quantizers(quantizers, device)


def verify_quantizers(quantizers: Mapping[str, Quantizer], device: torch.device) -> None:
    """Compare a hash of every quantizer's state over the ranks.

    Raises:
        RunError: names the quantizers that differ.
    """
    names = sorted(quantizers)
    digests = torch.stack([_digest(_bytes(quantizers[name])) for name in names])
    by_rank = torch.stack(_gather(digests, device))
    is_equal = (by_rank == by_rank[0]).all(dim=2).all(dim=0)
    unequal = [name for name, same in zip(names, is_equal.tolist(), strict=True) if not same]
    if unequal:
        raise RunError(f"after the broadcast the ranks still differ at {', '.join(unequal)}.")


def _bytes(quantizer: Quantizer) -> bytes:
    parts = [repr((quantizer.num_bits, quantizer.enabled, quantizer.levels)).encode()]
    for key, value in quantizer.state_dict().items():
        # As bytes: numpy has no bfloat16.
        stored = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        parts.append(key.encode() + stored.numpy().tobytes())
    return b"".join(parts)


def _digest(data: bytes) -> Tensor:
    return torch.tensor(list(blake2b(data, digest_size=16).digest()), dtype=torch.uint8)


def _gather(value: Tensor, device: torch.device) -> list[Tensor]:
    """The values of all ranks, on the CPU."""
    own = value.to(device)
    by_rank = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(by_rank, own)
    return [other.cpu() for other in by_rank]
