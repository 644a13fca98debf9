import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import raysearch
from raysearch.artifacts import codecs, resolve_run
from raysearch.records import CostModel
from tests.support import toy_task
from tests.support.command_line import QUICK, TOY, document, run_arguments, run_command

pytestmark = pytest.mark.slow

SETTINGS = raysearch.load_config(assignments=QUICK)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole walk by the command line, without Ray."""
    storage = tmp_path_factory.mktemp("runs")
    done = run_command(*run_arguments(storage, "toy", "--json"))
    assert done.returncode == 0, done.stderr
    return storage, document(done)


def test_the_json_document_holds_everything(finished):
    _, result = finished
    assert set(result) == {
        "run_id", "storage", "budget", "assignment", "costs", "float_metrics", "quantized_metrics",
        "model_dir", "report", "seconds", "notes", "front", "least_cost", "baselines", "standard_errors",
    }  # fmt: skip
    assert result["run_id"] == "toy"
    assert result["budget"] == ["avg_bits<=3.5"]
    assert result["costs"]["avg_bits"] <= 3.5
    assert set(result["quantized_metrics"]) == {"divergence", "agreement", "loss", "accuracy"}
    assert result["float_metrics"]["divergence"] == 0
    assert set(result["seconds"]) == {
        "task", "checks", "preflight", "workers", "calibration", "rounding", "sensitivity", "search",
        "refinement", "training", "evaluation", "export",
    }  # fmt: skip
    assert Path(result["report"]).is_file()


def test_the_folder_is_the_one_of_the_architecture(finished):
    folder = finished[0] / "toy"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {
        "run.json", "status.json", "setup.json", "ranges.safetensors", "rounding.safetensors",
        "sensitivity.parquet",
        "traces.parquet", "responses.arrow", "trials.parquet", "front.parquet", "best.json",
        "finetune.json", "metrics.json", "result.json", "report.html", "checkpoints/best.safetensors",
        "model/model.safetensors", "model/config.json", "model/manifest.json", "model/model.onnx",
    }  # fmt: skip
    assert expected <= files
    assert not [name for name in files if name.startswith("units/")], "finished units are cleared"
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


def test_every_measured_trial_keeps_the_budget(finished):
    search = resolve_run("toy", finished[0]).load(codecs.SEARCH)
    assert len(search.trials) >= 8
    assert all(value <= 0 for trial in search.trials for value in trial.excess.values())
    assert search.best.value == min(trial.value for trial in search.trials)
    assert search.best.value <= search.reasons["uniform 3"]


def test_the_exported_sizes_are_the_cost_model(finished):
    store = resolve_run("toy", finished[0])
    manifest = store.load(codecs.MANIFEST)
    model, best = CostModel(store.load(codecs.SETUP)), store.load(codecs.SEARCH).best
    assert manifest.weights_bytes == model.weight_bytes(best.assignment)
    (packed,) = (file for file in manifest.files if file.path == "model.safetensors")
    assert packed.size_bytes <= best.costs["size"] <= 1.01 * packed.size_bytes


def test_the_exported_configuration_names_the_run_and_its_budget(finished):
    config = json.loads((finished[0] / "toy" / "model" / "config.json").read_text())
    assert config["source"] == {"run_id": "toy", "budget": ["avg_bits<=3.5"]}


def test_a_retrieved_model_loads_and_agrees_with_onnx(finished, tmp_path):
    storage, result = finished
    done = run_command("retrieve", "toy", "--storage", storage, "--to", tmp_path / "got", "--json")
    folder = Path(document(done)["model_dir"])
    model = raysearch.load_model(folder)
    images, labels = toy_task.data(64, 2).tensors
    with torch.no_grad():
        outputs = model(images)
    accuracy = (outputs.argmax(1) == labels).float().mean().item()
    assert accuracy == pytest.approx(result["quantized_metrics"]["accuracy"], abs=1e-6)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # for CPUs without VNNI
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    (other,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert np.mean(other.argmax(1) == outputs.numpy().argmax(1)) >= 0.98


def test_resolve_report_status_and_export_work_on_the_saved_run(finished):
    storage, result = finished
    solved = {
        bits: document(
            run_command("resolve", "toy", "--storage", storage, "--budget", f"avg_bits<={bits}", "--json")
        )
        for bits in (2, 8)
    }
    assert solved[2]["costs"]["avg_bits"] == 2
    assert 2 < solved[8]["costs"]["avg_bits"] <= 8
    assert solved[8]["predicted"] < solved[2]["predicted"]
    state = document(run_command("status", storage / "toy", "--json"))
    assert (state["run_id"], state["state"]) == ("toy", "done")
    shown = document(run_command("report", "toy", "--storage", storage, "--json"))
    assert Path(shown["report"]).read_text().startswith("<!")
    again = document(run_command("export", "toy", "--storage", storage, "--target", "packed", "--json"))
    assert {check["target"] for check in again["checks"]} == {"packed", "onnx"}
    assert again["checks"][0]["max_abs_difference"] == 0.0
    raysearch.load_model(Path(result["model_dir"]))
    assert (Path(result["model_dir"]) / "model.onnx").exists()


def test_a_saved_run_answers_what_the_functions_do(finished):
    storage, result = finished
    saved = raysearch.load_run("toy", storage)
    assert repr(saved) == repr(raysearch.load_run(storage / "toy"))
    assert saved.status() == raysearch.status("toy", storage)
    assert saved.result().assignment == result["assignment"]
    assert saved.search().best.assignment.bits == result["assignment"]
    assert saved.setup() == saved.load_sensitivity()[0]
    assert saved.resolve("avg_bits<=3") == raysearch.resolve("toy", "avg_bits<=3", storage)
    assert {check.target for check in saved.verify().checks} == {"packed", "onnx"}
    with pytest.raises(raysearch.BadInputError, match="nothing"):
        raysearch.load_run("nothing", storage)


def test_inspect_spends_nothing_and_shows_the_range():
    shown = document(run_command("inspect", f"{TOY}:make_task", "--json"))
    assert shown["achievable"]["avg_bits"] == [2.0, 8.0]
    assert shown["groups"]["conv.weight"]["macs"] == 4 * 9 * 36
    plain = run_command("inspect", f"{TOY}:make_task")
    assert "conv.weight" in plain.stdout
    assert "achievable" not in plain.stderr


def test_without_training_data_there_is_no_qat_and_the_run_says_so(tmp_path):
    result = raysearch.run(
        toy_task.make_untrained_task(), "size<=1600B", tmp_path, config=SETTINGS, run_id="ptq", workers=0
    )
    assert any("no training data" in note for note in result.notes)
    assert set(result.quantized_metrics) == {"divergence", "agreement"}


def test_the_users_model_is_left_as_it_was(tmp_path):
    task = toy_task.make_task()
    task.model.train()
    task.model.conv.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    rng = torch.get_rng_state()
    raysearch.run(task, "avg_bits<=4", tmp_path, config=SETTINGS, workers=0)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    assert task.model.training
    assert not task.model.conv.weight.requires_grad
    assert not any(module._forward_pre_hooks for module in task.model.modules())


def test_inspect_shows_what_a_run_measured(finished):
    storage, result = finished
    shown = document(run_command("inspect", "--sensitivity", "toy", "--storage", storage, "--json"))
    groups = {row["group"]: row for row in shown["groups"]}
    assert {name: row["chosen"] for name, row in groups.items()} == result["assignment"]
    assert sum(row["share"] for row in groups.values()) == pytest.approx(1)
    assert all(row["traces"] for row in groups.values() if row["kind"] == "weight")
    text = run_command("inspect", "--sensitivity", "toy", "--storage", storage)
    assert all(name in text.stdout for name in groups)
    assert run_command("inspect").returncode == 2
