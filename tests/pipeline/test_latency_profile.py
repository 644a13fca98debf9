"""From a task to its latency profile, and from the profile to a budget."""

import json

import pytest
from typer.testing import CliRunner

from raysearch import api
from raysearch.cli import app
from raysearch.config import load_config
from raysearch.errors import BudgetError, ConfigError
from raysearch.pipeline.latency_profile import measure_latency
from raysearch.records import check_achievable, parse_budgets
from tests.support import toy_task

TASK = "tests/support/toy_task.py:make_task"


@pytest.mark.slow
def test_a_profile_of_the_command_makes_latency_a_budget(tmp_path):
    out = tmp_path / "profile.json"
    found = CliRunner().invoke(
        app,
        ["profile", TASK, "--out", str(out), "--rounds", "1", "--set", "placement.weight_bit_widths=[2,4]"],
    )
    assert found.exit_code == 0, found.output
    assert "Below 8 bits" in found.output
    data = json.loads(out.read_text())
    assert set(data["layers"]) == {"conv.weight", "mix.weight", "head.weight"}
    assert data["machine"]["threads"] == "1"
    assert "VNNI" in data["machine"]["instructions"]
    _, model = api.inspect(TASK, load_config(overrides={"search": {"latency_profile": str(out)}}))
    assert model.lowest["latency"] == pytest.approx(data["checks"]["8"]["predicted"], rel=1e-6)
    assert model.reference["latency"] == pytest.approx(data["checks"]["float"]["predicted"], rel=1e-6)
    check_achievable(parse_budgets([f"latency<={model.lowest['latency'] * 1.01}s"]), model)
    with pytest.raises(BudgetError, match="latency"):
        check_achievable(parse_budgets([f"latency<={model.lowest['latency'] * 0.9}s"]), model)


def test_a_target_that_is_not_timed_and_a_folder_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'openvino' cannot be timed; known: onnxruntime"):
        measure_latency(toy_task.make_task(), target="openvino")
    found = CliRunner().invoke(app, ["profile", TASK, "--out", str(tmp_path / "no" / "profile.json")])
    assert found.exit_code == 2
