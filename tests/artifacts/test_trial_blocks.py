from dataclasses import replace

import pytest

from raysearch.artifacts import RunStore, trial_blocks
from raysearch.artifacts.trial_blocks import TrialBlocks
from tests.support.small_records import small_trials


def refuse(codec, error):
    raise error


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.setattr(trial_blocks, "BLOCK_TRIALS", 2)
    return tuple(replace(small_trials()[0], number=number) for number in range(5))


def test_a_batch_writes_its_own_block_and_none_before(store, trials):
    blocks = TrialBlocks(store)
    blocks.save(trials[:3])
    first = store.storage.local_path("units/trials/000000.parquet").stat().st_ino
    blocks.save(trials)
    assert store.storage.local_path("units/trials/000000.parquet").stat().st_ino == first
    again = RunStore(store.storage.local_path().parent, "run-1")
    assert TrialBlocks(again).load(refuse) == trials
    blocks.clear()
    assert TrialBlocks(again).load(refuse) == ()
    assert "units" not in store.storage.read_bytes("seals.json").decode()


def test_a_search_that_goes_on_with_fewer_trials_leaves_no_old_ones(store, trials):
    TrialBlocks(store).save(trials)
    TrialBlocks(store).save(trials[:1])
    assert TrialBlocks(store).load(refuse) == trials[:1]


def test_trials_before_a_damaged_block_are_kept(store, trials):
    TrialBlocks(store).save(trials)
    store.storage.write_bytes("units/trials/000001.parquet", b"other")
    told = []
    assert TrialBlocks(store).load(lambda codec, error: told.append(codec.files)) == trials[:2]
    assert told == [("units/trials/000001.parquet",)]
