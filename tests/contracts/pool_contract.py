"""What every pool must do; a test class inherits `PoolContract` and says how its pool is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool, Pool
from raysearch.errors import DataError, UnitError
from tests.support import pool_units

MakePool = Callable[[Any], Pool]


class PoolContract:
    @pytest.fixture
    def make_pool(self) -> MakePool:
        raise NotImplementedError("say how a pool is made from a replica")

    def test_equals_the_reference(self, make_pool: MakePool) -> None:
        work = pool_units.trace_units()
        reference = dict(LocalPool(pool_units.small_model()).run(pool_units.trace, work, (0.5,)))
        pool = make_pool(pool_units.small_model())
        answers = list(pool.run(pool_units.trace, work, (0.5,)))
        assert sorted(key for key, _ in answers) == sorted(work)
        for key, value in answers:
            assert value["probes"].tolist() == reference[key]["probes"].tolist()

    def test_serves_one_function_after_another(self, make_pool: MakePool) -> None:
        pool = make_pool(None)
        assert list(pool.run(pool_units.double, {})) == []
        assert {
            key: value["double"] for key, value in pool.run(pool_units.double, {("a",): (1,), ("b",): (2,)})
        } == {
            ("a",): 2,
            ("b",): 4,
        }
        added = dict(pool.run(pool_units.add, {("c", 0): (np.arange(3),)}, (np.ones(3),)))
        assert added["c", 0]["sum"].tolist() == [1, 2, 3]

    def test_an_answer_belongs_to_the_caller(self, make_pool: MakePool) -> None:
        model = torch.nn.Linear(2, 2)
        pool = make_pool(model)
        weight = model.weight.detach().clone()
        for _, value in pool.run(pool_units.weights, {("weights",): ()}):
            assert value["weight"].dtype == np.float32
            value["weight"][...] = 9
        for _, value in pool.run(pool_units.weights, {("weights",): ()}):
            assert torch.equal(torch.from_numpy(value["weight"]), weight)

    def test_an_exception_names_the_unit(self, make_pool: MakePool, tmp_path: Path) -> None:
        pool = make_pool(None)
        work = {("number", number): (number, str(tmp_path)) for number in range(4)}
        with pytest.raises(
            UnitError, match=r"\('number', 2\).*raise_value_error.*two is not a number"
        ) as error:
            list(pool.run(pool_units.raise_value_error, work))
        assert isinstance(error.value.__cause__, ValueError)
        assert (tmp_path / "calls").read_text().splitlines().count("2") == 1
        assert len(list(pool.run(pool_units.double, {("after",): (1,)}))) == 1

    def test_our_own_errors_stay_what_they_are(self, make_pool: MakePool) -> None:
        with pytest.raises(DataError, match="batch 3 has a NaN"):
            list(make_pool(None).run(pool_units.raise_data_error, {("only",): ()}))

    def test_an_answer_must_be_named_arrays(self, make_pool: MakePool) -> None:
        pool = make_pool(None)
        for function in (pool_units.answer_a_tensor, pool_units.answer_nothing):
            with pytest.raises(UnitError, match=r"\('only',\) answered .* numpy arrays"):
                list(pool.run(function, {("only",): ()}))

    def test_an_abandoned_run_leaves_the_pool_usable(self, make_pool: MakePool) -> None:
        pool = make_pool(pool_units.small_model())
        first = pool.run(pool_units.trace, pool_units.trace_units(), (1.0,))
        next(first)
        first.close()  # type: ignore[attr-defined]
        work = pool_units.trace_units(2, 1)
        answers = dict(pool.run(pool_units.trace, work, (2.0,)))
        assert sorted(answers) == sorted(work)
        reference = dict(LocalPool(pool_units.small_model()).run(pool_units.trace, work, (2.0,)))
        assert all((answers[key]["probes"] == reference[key]["probes"]).all() for key in answers)
