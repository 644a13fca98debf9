import signal

import pytest

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.errors import StorageError
from tests.support import toy_task
from tests.support.command_line import QUICK, run_arguments, run_command, run_process

# The process is killed when two units of a part are on disk: where it dies does not depend on the machine.
PARTS = ("sensitivity-traces", "sensitivity-responses", "search")
SHORT = [*QUICK, "training.epochs=0", 'export.targets=["packed"]']
CONFIG = raysearch.load_config(assignments=SHORT)
RECORDS = ("ranges.safetensors", "traces.parquet", "sensitivity.parquet", "responses.arrow", "best.json")


def folder_bytes(storage, run_id):
    folder = storage / run_id
    return {name: (folder / name).read_bytes() for name in RECORDS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    storage = tmp_path_factory.mktemp("whole")
    done = run_command(*run_arguments(storage, "run", factory="make_fragile_task", settings=SHORT))
    assert done.returncode == 0, done.stderr
    return folder_bytes(storage, "run")


@pytest.mark.slow
@pytest.mark.parametrize("stage", PARTS)
def test_a_killed_run_goes_on_to_the_identical_result(stage, whole, tmp_path):
    arguments = run_arguments(tmp_path, "run", factory="make_fragile_task", settings=SHORT)
    killed = run_process(*arguments, TOY_KILL_AFTER=str(tmp_path / "run" / "units" / stage))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "best.json").exists()
    status = resolve_run("run", tmp_path).load(codecs.STATUS)
    assert (status.state, status.stage.split("-")[0]) == ("running", stage.split("-")[0])
    assert list((tmp_path / "run" / "units" / stage).iterdir()), "finished units are on disk"
    resumed = run_command(*arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert folder_bytes(tmp_path, "run") == whole


@pytest.mark.ray
def test_two_actors_and_no_ray_give_the_same_tables(ray_cluster, whole, tmp_path):
    raysearch.run(
        toy_task.make_fragile_task(), "avg_bits<=3.5", tmp_path, config=CONFIG, run_id="run", workers=2
    )
    assert folder_bytes(tmp_path, "run") == whole


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    storage = tmp_path_factory.mktemp("finished")
    return storage, raysearch.run(
        toy_task.make_task(), "avg_bits<=3.5", storage, config=CONFIG, run_id="r", workers=0
    )


def resume(storage, *, task=None, budget="avg_bits<=3.5", config=None):
    return raysearch.run(
        task or toy_task.make_task(),
        budget,
        storage,
        config=config or CONFIG,
        run_id="r",
        workers=0,
        resume=True,
    )


def test_resume_with_other_settings_names_the_field(finished):
    storage, first = finished
    assert resume(storage) == first
    other = raysearch.load_config(assignments=[*QUICK, "training.epochs=0", "search.num_trials=17"])
    with pytest.raises(StorageError, match=r"search\.num_trials is 16 in the run and 17 now"):
        resume(storage, config=other)
    with pytest.raises(StorageError, match="budget"):
        resume(storage, budget="avg_bits<=4")
    task = toy_task.make_task()
    task.model.head.weight.data.mul_(2)
    with pytest.raises(StorageError, match=r"fingerprints\.model"):
        resume(storage, task=task)
    assert resolve_run("r", storage).load(codecs.RESULT) == first


def test_a_run_id_is_not_taken_twice(finished):
    storage, first = finished
    with pytest.raises(StorageError, match="--resume"):
        raysearch.run(toy_task.make_task(), "avg_bits<=3.5", storage, config=CONFIG, run_id="r", workers=0)
    assert resolve_run("r", storage).load(codecs.RESULT) == first
