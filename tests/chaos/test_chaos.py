"""The short form of `make chaos`: what it draws here it draws anew, and more of, there."""

from tests.chaos.damage import damage_finished
from tests.chaos.record_files import fuzz_records
from tests.chaos.runs import sealed_copy
from tests.chaos.tally import Tally
from tests.chaos.tasks import fuzz_tasks
from tests.chaos.texts import INPUTS, fuzz_texts


def assert_clean(tally, kinds):
    """Nothing but errors of raysearch came out, and damage was told in every kind of input."""
    assert tally.escaped == []
    assert {kind for kind, outcome in tally.counts if outcome == "named"} >= set(kinds)


def test_readers_of_records_give_one_kind_of_error():
    tally = Tally()
    fuzz_records(tally, 800, seed=0)
    assert_clean(tally, {"setup.json", "best.json", "trials.parquet", "responses.arrow"})


def test_readers_of_texts_give_errors_of_raysearch_alone(tmp_path):
    tally = Tally()
    fuzz_texts(tally, 40, seed=0, scratch=tmp_path)
    # A state that is damaged counts as not there: training goes on from the one before.
    assert_clean(tally, set(INPUTS) - {"training_state"})


def test_tasks_with_odd_fields_are_refused_by_name_or_run(tmp_path):
    tally = Tally()
    fuzz_tasks(tally, 40, seed=0, scratch=tmp_path)
    assert_clean(tally, {"task"})
    assert tally.counts["task", "read"]


def test_no_damage_to_any_file_of_a_run_is_believed(tmp_path):
    tally = Tally()
    damage_finished(tally, sealed_copy(tmp_path), 30, seed=0, questions=("records", "retrieve"))
    assert_clean(tally, {"finished: records", "finished: retrieve"})
