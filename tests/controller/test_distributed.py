"""Two gloo processes that start with different ranges, widths and switches."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raysearch.controller.distribution import _bytes
from raysearch.errors import ConfigError, PlacementError
from raysearch.records import BitAssignment
from tests.controller import test_schemes
from tests.support.quantized_models import assign, quantized, run


def work(rank: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        q = quantized("digits", 4 if rank == 0 else 8, left_out=["stem.weight"] if rank == 0 else [])
        if rank == 1:
            with torch.no_grad():
                for quantizer in q.controller.all_quantizations.values():
                    quantizer.scale.mul_(2)
        q.controller.distributed()
        held = q.controller.all_quantizations
        with_groups = test_schemes.build(test_schemes.mixed(rank))
        with_groups.distributed()
        torch.save(
            {
                "bits": dict(q.controller.assignment.bits),
                "enabled": [x.enabled for x in held.values()],
                "grads": [x.scale.requires_grad for x in held.values()],
                "outputs": run(q.model, q.inputs),
                "schemes": with_groups.assignment.as_json,
                "outputs of groups": test_schemes.output(with_groups.model),
            },
            f"{out}/{rank}.pt",
        )
        other = quantized("wave" if rank else "digits", 4)
        with pytest.raises(PlacementError, match="different quantizer setups"):
            other.controller.distributed()
        # A rank that leaves first takes the store from under the other one's threads.
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # What is tested is done. The end of an interpreter may abort in one of gloo's threads ("terminate called
    # without an active exception"), which is none of the controller's.
    os._exit(0)


@pytest.mark.process
def test_two_ranks_hold_what_rank_0_held(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.spawn(work, (port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected = quantized("digits", 4, left_out=["stem.weight"])
    assert BitAssignment(first["bits"]) == BitAssignment(second["bits"]) == expected.assignment
    assert first["enabled"] == second["enabled"] == second["grads"]
    assert torch.equal(first["outputs"], second["outputs"])
    assert torch.equal(first["outputs"], run(expected.model, expected.inputs))
    groups = test_schemes.build(test_schemes.mixed())
    assert first["schemes"] == second["schemes"] == groups.assignment.as_json
    for rank in (first, second):
        assert torch.equal(rank["outputs of groups"], test_schemes.output(groups.model))


def test_without_a_process_group_it_is_refused():
    q = quantized("digits", None)
    with pytest.raises(ConfigError, match="init_process_group"):
        q.controller.distributed()
    assert q.controller.assignment == assign(q.setup, None)


def test_a_bfloat16_quantizer_is_compared_by_its_bytes() -> None:
    q = quantized("digits")
    for quantizer in q.controller.all_quantizations.values():
        data = _bytes(quantizer)
        halved = _bytes(quantizer.to(torch.bfloat16))
        assert len(halved) == len(data) - 2 * quantizer.scale.numel()
