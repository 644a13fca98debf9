from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raysearch.cluster.pool import LocalPool
from raysearch.errors import TaskError, UnitError
from raysearch.evaluation import (
    Divergence,
    MicrobatchState,
    Replica,
    default_forward,
    run_in_microbatches,
)
from raysearch.evaluation.microbatch import is_out_of_memory
from tests.support import model_zoo

Pair = namedtuple("Pair", ["first", "second"])


class Greedy(nn.Module):
    """Asks for more memory than there is when its batch exceeds some samples, in each way there is."""

    def __init__(self, inner: nn.Module, fits: int, how: str = "cuda") -> None:
        super().__init__()
        self.inner, self.fits, self.how = inner, fits, how
        # No plain list: what a forward puts into one of the model's own is taken out again.
        self.log = SimpleNamespace(sizes=[])

    @property
    def sizes(self) -> list[int]:
        return self.log.sizes

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.fits:
            if self.how == "cuda":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if self.how == "numpy":
                np.empty(1 << 60, np.uint8)
            torch.empty(1 << 60)
        return self.inner(x)


def replica(model: nn.Module, samples: int = 13) -> Replica:
    shards = [torch.randn(samples, 1, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    return Replica(model, default_forward, {"calibration": shards}, Divergence())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cuda", "host", "numpy"])
def test_a_shard_that_does_not_fit_is_halved_and_finished(how: str, caplog: pytest.LogCaptureFixture) -> None:
    digits = model_zoo.build("digits")
    whole = replica(digits)
    held = replica(Greedy(digits, 4, how))
    for shard in range(2):
        got, expected = held.float_outputs("calibration", shard), whole.float_outputs("calibration", shard)
        # Other kernels may serve another number of rows, so equality is up to float32 rounding …
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        # … but exactly what a shard cut into the same pieces gives.
        x = held.shard("calibration", shard)
        pieces = [whole.run(digits, x[start : start + 4]) for start in range(0, 13, 4)]
        assert torch.equal(got, torch.cat(pieces))
    # 13 and 7 fail once; the next shard begins with what fitted.
    assert held.model.sizes == [13, 7, 4, 4, 4, 1, 4, 4, 4, 1]
    assert held.microbatches("forward").num_samples == 4
    assert "13 samples of shard 0 of the calibration data" in caplog.text
    assert "shard_size of 4 makes them equal" in caplog.text


@pytest.mark.slow
def test_pieces_that_fitted_are_not_computed_again() -> None:
    model = Greedy(nn.Identity(), 8)

    def grows(x: Tensor) -> Tensor:
        # Other work on the device takes memory away meanwhile.
        model.fits = 2 if len(model.sizes) >= 2 else 8
        return model(x)

    got = run_in_microbatches(grows, torch.arange(12.0), MicrobatchState())
    assert got.tolist() == list(range(12))
    assert model.sizes == [12, 6, 6, 3, 2, 2, 2]


@pytest.mark.slow
def test_one_sample_that_does_not_fit_is_an_error_that_says_where() -> None:
    held = replica(Greedy(model_zoo.build("digits"), 0))
    with pytest.raises(UnitError, match=r"one sample of shard 1 of the calibration data.*gpus_per_worker"):
        held.float_outputs("calibration", 1)


def test_other_errors_are_not_touched() -> None:
    calls: list[int] = []

    def broken(x: Tensor) -> Tensor:
        calls.append(len(x))
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_in_microbatches(broken, torch.zeros(4), MicrobatchState())
    assert calls == [4]
    assert not is_out_of_memory(ValueError("CUDA out of memory"))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling cusolverDnCreate(handle)",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_what_libraries_of_the_gpu_say_without_memory_is_understood(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))


@pytest.mark.parametrize(
    "batch",
    [
        torch.arange(5),
        (torch.arange(5), torch.arange(5) * 2),
        [torch.arange(5), {"a": torch.arange(10).reshape(5, 2)}],
        {"tokens": torch.arange(5), "note": "kept"},
        Pair(torch.arange(5), torch.zeros(5, 3)),
    ],
    ids=["tensor", "tuple", "list", "dict", "named tuple"],
)
def test_any_kind_of_batch_and_result_is_cut_and_joined(batch: object) -> None:
    seen: list[object] = []

    def same(part: object) -> object:
        seen.append(part)
        return part

    got = run_in_microbatches(same, batch, MicrobatchState(2))
    assert len(seen) == 3
    torch.testing.assert_close(got, batch) if not isinstance(batch, dict) else None
    assert type(got) is type(batch)
    if isinstance(batch, dict):
        assert got["note"] == "kept"
        assert torch.equal(got["tokens"], batch["tokens"])


def test_an_output_object_with_logits_is_joined() -> None:
    @dataclass(frozen=True)
    class Found:
        logits: Tensor
        hidden: tuple[Tensor, ...]
        name: str = "kept"

    x = torch.arange(10.0).reshape(5, 2)
    got = run_in_microbatches(lambda part: Found(part, (part[:, 0],)), x, MicrobatchState(2))
    assert torch.equal(got.logits, x)
    assert torch.equal(got.hidden[0], x[:, 0])
    assert got.name == "kept"


def test_sums_are_combined_and_results_without_rows_refused() -> None:
    x = torch.arange(9, dtype=torch.float64)
    assert run_in_microbatches(torch.sum, x, MicrobatchState(4), combine=sum) == x.sum()
    with pytest.raises(TaskError, match=r"shape \(\), not one row a sample. Lower shard_size to 4"):
        run_in_microbatches(torch.sum, x, MicrobatchState(4))


def forward_unit(held: Replica, shard: int) -> dict[str, np.ndarray]:
    return {"z": held.float_outputs("calibration", shard).numpy()}


@pytest.mark.slow
def test_a_pool_finishes_all_units_of_a_worker_with_little_memory() -> None:
    digits = model_zoo.build("digits")
    pool = LocalPool(replica(Greedy(digits, 5)))
    got = {key: value["z"] for key, value in pool.run(forward_unit, {(n,): (n,) for n in range(2)})}
    for n in range(2):
        expected = replica(digits).float_outputs("calibration", n).numpy()
        np.testing.assert_allclose(got[n,], expected, rtol=1e-5, atol=1e-6)
