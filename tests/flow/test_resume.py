import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch

import raysearch
from raysearch.artifacts import Storage, codecs, resolve_run
from raysearch.artifacts.seals import Seals
from raysearch.config import ClusterConfig
from raysearch.errors import PoolError, StorageError, TrainingError
from tests.support import toy_task
from tests.support.command_line import QUICK, run_arguments, run_command, run_process

pytestmark = pytest.mark.slow

# The process is killed when two units of a part are on disk: where it dies does not depend on the machine.
PARTS = (
    "rounding",
    "sensitivity-traces",
    "sensitivity-responses",
    "search",
    "refinement-sequential",
    "refinement-candidates",
)
SHORT = [*QUICK, "rounding.unit_shards=1", "training.epochs=0", 'export.targets=["packed"]']
CONFIG = raysearch.load_config(assignments=SHORT)
RECORDS = (
    "ranges.safetensors",
    "rounding.safetensors",
    "traces.parquet",
    "sensitivity.parquet",
    "responses.arrow",
    "best.json",
    "refinement.safetensors",
)


def folder_bytes(storage):
    return {name: (storage / "run" / name).read_bytes() for name in RECORDS}


def run(storage, *, task=None, budget="avg_bits<=3.5", config=CONFIG, **options):
    task = task or toy_task.make_fragile_task()
    return raysearch.run(task, budget, storage, config=config, run_id="run", **{"workers": 0, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nothing interrupted: its storage and its result."""
    storage = tmp_path_factory.mktemp("finished")
    return storage, run(storage)


@pytest.mark.process
def test_a_run_killed_in_every_part_goes_on_to_the_identical_result(finished, tmp_path):
    arguments = run_arguments(tmp_path, "run", factory="make_fragile_task", settings=SHORT)
    for stage in PARTS:
        units = tmp_path / "run" / "units" / stage
        killed = run_process(*arguments, TOY_KILL_AFTER=str(units))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        status = resolve_run("run", tmp_path).load(codecs.STATUS)
        assert (status.state, status.stage.split("-")[0]) == ("running", stage.split("-")[0])
        assert list(units.iterdir()), "finished units are on disk"
        arguments = [*arguments, "--resume"]
    assert not (tmp_path / "run" / "refinement.safetensors").exists()
    resumed = run_command(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert folder_bytes(tmp_path) == folder_bytes(finished[0])


@pytest.mark.process
def test_a_run_killed_in_training_goes_on_to_the_identical_result(finished, tmp_path):
    # Killed after the checkpoint of step 4, in the middle of an epoch of 6.
    settings = [*SHORT, "training.epochs=2", "training.batch_size=16", "training.checkpoint_steps=4"]
    config = raysearch.load_config(assignments=settings)
    for name in ("whole", "killed"):
        shutil.copytree(finished[0] / "run", tmp_path / name / "run")
        for file in ("finetune.json", "metrics.json", "model/manifest.json", "result.json"):
            (tmp_path / name / "run" / file).unlink()
    expected = run(tmp_path / "whole", config=config, resume=True)
    arguments = run_arguments(
        tmp_path / "killed", "run", "--resume", factory="make_fragile_task", settings=settings
    )
    checkpoints = tmp_path / "killed" / "run" / "checkpoints" / "training"
    killed = run_process(*arguments, TOY_KILL_AFTER=str(checkpoints))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    names = {path.name for path in checkpoints.iterdir()}
    assert names == {"best-00000000.safetensors", "step-00000004.safetensors"}
    resumed = run(tmp_path / "killed", config=config, resume=True)
    assert resumed.quantized_metrics == expected.quantized_metrics
    for file in ("finetune.json", "checkpoints/best.safetensors"):
        whole = (tmp_path / "whole" / "run" / file).read_bytes()
        assert (tmp_path / "killed" / "run" / file).read_bytes() == whole
    assert not checkpoints.exists()
    # The best state is damaged later: training begins anew, and leaves nothing more.
    best = checkpoints.with_name("best.safetensors")
    whole = best.read_bytes()
    best.write_bytes(whole[:-1])
    (tmp_path / "killed" / "run" / "result.json").unlink()
    with pytest.warns(UserWarning, match=r"best\.safetensors is damaged"):
        run(tmp_path / "killed", config=config, resume=True)
    assert best.read_bytes() == whole
    assert not checkpoints.exists()


def damage_all(folder):
    """Empty every record that a run can compute again, as a loss of power may leave it; their names."""
    names = [name for record in codecs.RECORDS for name in record.files if (folder / name).exists()]
    for name in names:
        (folder / name).write_bytes(b"")
    return names


@pytest.mark.filterwarnings("ignore:.*is damaged")
def test_a_run_with_every_record_empty_goes_on_to_the_identical_result(finished, tmp_path):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    damaged = damage_all(tmp_path / "run")
    assert {"status.json", "best.json", "result.json", "finetune.json"} <= set(damaged)
    again = run(tmp_path, resume=True)
    assert again.quantized_metrics == finished[1].quantized_metrics
    assert folder_bytes(tmp_path) == folder_bytes(finished[0])
    assert (tmp_path / "run" / "responses.arrow.damaged").exists()


def flip_last_bit(path):
    """Damage a file; its bytes before."""
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return whole


def test_a_damaged_state_of_training_is_set_aside_and_made_again(finished, tmp_path):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    checkpoint = tmp_path / "run" / "checkpoints" / "best.safetensors"
    whole = flip_last_bit(checkpoint)
    with pytest.warns(UserWarning, match=r"best\.safetensors is damaged.*finetune\.json\.damaged"):
        again = run(tmp_path, resume=True)
    assert checkpoint.read_bytes() == whole
    assert again.quantized_metrics == finished[1].quantized_metrics


def test_a_damaged_file_of_the_model_is_exported_again(finished, tmp_path):
    shutil.copytree(finished[0] / "run", tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    weights = tmp_path / "run" / "model" / "model.safetensors"
    whole = flip_last_bit(weights)
    with pytest.warns(UserWarning, match=r"model\.safetensors is damaged"):
        run(tmp_path, resume=True)
    assert weights.read_bytes() == whole


@pytest.mark.ray
def test_two_actors_and_no_ray_give_the_same_tables(ray_cluster, finished, tmp_path):
    run(tmp_path, workers=2)
    assert folder_bytes(tmp_path) == folder_bytes(finished[0])


def edited(folder, change):
    """Rewrite a run's settings on disk."""
    path = folder / "run" / "run.json"
    record = json.loads(path.read_text())
    change(record["config"])
    data = json.dumps(record).encode()
    Seals(Storage(path.parent)).announce({path.name: data})
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("device", ["auto", "cuda" if torch.cuda.is_available() else "cpu"])
def test_the_device_in_force_is_kept_and_compared(finished, tmp_path, device):
    storage, first = finished
    in_force = "cuda" if torch.cuda.is_available() else "cpu"
    shutil.copytree(storage / "run", tmp_path / "run")

    def leave_open(config):
        assert (config["cluster"]["device"], config["training"]["use_gpu"]) == (in_force, in_force == "cuda")
        config["cluster"]["device"], config["training"]["use_gpu"] = device, None

    # A run that ended before its machines were known.
    path = edited(tmp_path, leave_open)
    assert run(tmp_path, resume=True) == first
    config = json.loads(path.read_text())["config"]
    assert (config["cluster"]["device"], config["training"]["use_gpu"]) == (in_force, in_force == "cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_run_of_gpus_does_not_go_on_without_them(finished, tmp_path):
    shutil.copytree(finished[0] / "run", tmp_path / "run")

    def of_gpus(config):
        config["cluster"]["device"], config["training"]["use_gpu"] = "cuda", True

    edited(tmp_path, of_gpus)
    with pytest.raises(
        StorageError, match=r'use_gpu is true in the run and false now|"cuda" in the run and "cpu"'
    ):
        run(tmp_path, resume=True)
    on_gpus = CONFIG.model_copy(update={"cluster": ClusterConfig(device="cuda")})
    with pytest.raises(PoolError, match="this process sees no GPU that torch can use"):
        run(tmp_path, resume=True, config=on_gpus)


def test_resume_with_other_settings_names_the_field(finished):
    storage, first = finished
    assert run(storage, resume=True) == first
    other = raysearch.load_config(assignments=[*SHORT, "search.num_trials=17"])
    with pytest.raises(StorageError, match=r"search\.num_trials is 16 in the run and 17 now"):
        run(storage, config=other, resume=True)
    with pytest.raises(StorageError, match="budget"):
        run(storage, budget="avg_bits<=4", resume=True)
    task = toy_task.make_fragile_task()
    task.model.head.weight.data.mul_(2)
    with pytest.raises(StorageError, match=r"fingerprints\.model"):
        run(storage, task=task, resume=True)
    assert resolve_run("run", storage).load(codecs.RESULT) == first


def test_a_run_id_is_not_taken_twice(finished):
    storage, first = finished
    with pytest.raises(StorageError, match="--resume"):
        run(storage)
    assert resolve_run("run", storage).load(codecs.RESULT) == first


def test_a_training_that_diverged_goes_on_with_a_lower_rate_from_its_checkpoint(tmp_path):
    statuses = []

    def loss(outputs, batch):
        diverges = outputs.requires_grad and statuses and statuses[-1].details.get("epoch") == 2
        return toy_task.loss(outputs, batch) * (float("nan") if diverges else 1.0)

    settings = ["training.epochs=3", "rounding.refine=[]", "training.batch_size=16"]
    config = raysearch.load_config(assignments=[*SHORT, *settings])
    task = replace(toy_task.make_task(), loss=loss)
    with pytest.raises(TrainingError, match=r"objective is nan at epoch 1.*--resume.*training.learning_rate"):
        run(tmp_path, task=task, config=config, listener=statuses.append)
    statuses.clear()
    lower = raysearch.load_config(assignments=[*SHORT, *settings, "training.learning_rate=0.0001"])
    result = run(tmp_path, task=task, config=lower, resume=True)
    assert any("other settings: training.learning_rate is 0.001" in note for note in result.notes)
    recorded = resolve_run("run", tmp_path).open()["config"]["training"]
    assert recorded["learning_rate"] == 0.0001
    assert not (tmp_path / "run" / "checkpoints" / "training").exists()
    with pytest.raises(StorageError, match=r"training\.learning_rate is 0\.0001 in the run and 0\.001 now"):
        run(tmp_path, task=task, config=config, resume=True)
