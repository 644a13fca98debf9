"""The inverse question, a front, and a saved run solved anew and measured, as a user asks for them."""

import pytest
from typer.testing import CliRunner

import raysearch
from raysearch.artifacts import UnitLog, codecs, resolve_run
from raysearch.cli import app
from raysearch.config import load_config, settings_as_text
from raysearch.errors import ConfigError, RunError
from raysearch.records.costs.text import number
from tests.support import toy_task
from tests.support.command_line import QUICK, run_arguments

pytestmark = pytest.mark.slow

SHORT = [*QUICK, "training.epochs=1", 'export.targets=["packed"]']
CONFIG = load_config(assignments=SHORT)
DROP = "loss=1%"


def ask(storage, task, **options):
    settings = {"max_drop": DROP, "config": CONFIG, "run_id": "least", "workers": 0, **options}
    return raysearch.run(task, (), storage, minimize="size", **settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    storage = tmp_path_factory.mktemp("least")
    return storage, ask(storage, toy_task.make_task()).to_dict()


def test_the_least_size_keeps_the_drop_and_says_what_became_of_it(finished):
    storage, result = finished
    store, least = resolve_run("least", storage), result["least_cost"]
    search = store.load(codecs.SEARCH)
    assert result["budget"] == ()
    assert (search.objective, search.maximize, search.front_cost) == ("loss", False, "size")
    assert least["allowed"] == pytest.approx(0.01 * least["float_value"])
    assert least["drop"] == pytest.approx(least["value"] - least["float_value"])
    assert least["drop"] <= least["allowed"] + 1e-9
    bar = least["float_value"] + least["allowed"] + 1e-9
    done = [trial for trial in search.trials if trial.state == "COMPLETE"]
    sizes = [trial.costs["size"] for trial in done if trial.value <= bar]
    assert len(sizes) < len(done)
    assert least["cost"] == result["costs"]["size"] == min(sizes)
    metrics = store.load(codecs.METRICS)
    trained = metrics["quantized"]["loss"] - metrics["float"]["loss"]
    assert least["trained_drop"] == pytest.approx(trained)
    assert any("least size found" in note for note in result["notes"])


def test_a_search_that_was_stopped_goes_on_to_the_identical_result(finished, tmp_path):
    task, units = toy_task.make_task(), tmp_path / "least" / "units" / "search"

    def stopping(model, batch):
        if units.exists() and len(UnitLog(resolve_run("least", tmp_path)).read("search")) >= 12:
            raise KeyboardInterrupt
        return model(batch[0])

    task.forward = stopping
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, task)
    task.forward = None
    assert ask(tmp_path, task, resume=True).to_dict()["least_cost"] == finished[1]["least_cost"]
    for name in ("best.json", "trials.parquet", "least_cost.json"):
        assert (tmp_path / "least" / name).read_bytes() == (finished[0] / "least" / name).read_bytes()


def test_a_drop_that_nothing_keeps_fails_before_training(tmp_path):
    with pytest.raises(RunError, match="the least drop measured is"):
        ask(tmp_path, toy_task.make_task(), max_drop="divergence=0")
    assert not resolve_run("least", tmp_path).has(codecs.FINE_TUNE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"minimize": "size"}, "one question"),
        ({"minimize": "size", "max_drop": {"speed": 1}}, "search.max_drop names 'speed'"),
        ({"minimize": "size", "max_drop": {"a": 1, "b": 2}}, "name one metric"),
        ({"minimize": "latency", "max_drop": {"accuracy": 1}}, "latency-profile"),
        ({}, "no budget is given"),
    ],
)
def test_questions_that_cannot_be_answered_are_refused(options, said, tmp_path):
    with pytest.raises(raysearch.BadInputError, match=said):
        raysearch.run(toy_task.make_task(), storage=tmp_path, workers=0, **options)


def test_a_front_is_listed_and_another_budget_is_measured(tmp_path):
    arguments = run_arguments(tmp_path, "front", "--front", "size", settings=SHORT)
    made = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert made.exit_code == 0, made.output
    rows = resolve_run("front", tmp_path).load(codecs.RESULT).front
    assert all(number(row["value"]) in made.stdout for row in rows)
    sizes, values = [r["costs"]["size"] for r in rows], [r["value"] for r in rows]
    assert len(rows) > 1
    assert sizes == sorted(sizes)
    assert values == sorted(values, reverse=True)
    solved = CliRunner().invoke(
        app,
        ["resolve", "front", "--storage", str(tmp_path), "--budget", "avg_bits<=3", "--measure", "--json"],
    )
    assert solved.exit_code == 0, solved.output
    trials = raysearch.resolve_measured("front", "avg_bits<=3", tmp_path, count=3)
    assert [t.value for t in trials] == sorted(t.value for t in trials)
    assert len({t.assignment.digest() for t in trials}) == 3
    assert all(t.costs["avg_bits"] <= 3 for t in trials)
    known = {t.assignment.digest(): t.value for t in resolve_run("front", tmp_path).load(codecs.TRIALS)}
    shared = [t for t in trials if t.assignment.digest() in known]
    assert shared, "the run measured the surrogate's optimum under tighter limits too"
    assert all(t.value == pytest.approx(known[t.assignment.digest()], rel=1e-6) for t in shared)
    with pytest.raises(raysearch.BadInputError, match="'size<=1B' cannot be met"):
        raysearch.resolve_measured("front", ["avg_bits<=3", "size<=1B"], tmp_path)


def test_a_profile_travels_with_the_settings(tmp_path):
    file = tmp_path / "latency.json"
    levels = '{"float": 1e-3, "8": 0.5}'
    file.write_text(f'{{"layers": {{"block.conv.weight": {levels}}}, "machine": {{"cpu": "a \\"b\\""}}}}')
    config = load_config(overrides={"search": {"latency_profile": str(file), "max_drop": "accuracy=1%",
                                              "minimize": "latency"}})  # fmt: skip
    file.unlink()
    assert load_config(assignments=settings_as_text(config)) == config
    assert config.search.latency_profile["layers"]["block.conv.weight"]["8"] == 0.5


def test_settings_that_no_command_line_holds_are_refused(tmp_path):
    layers = {f"blocks.{i}.weight": {"float": 1e-3, "8": 1e-4} for i in range(3000)}
    task = tmp_path / "task.py"
    task.write_text("")
    with pytest.raises(ConfigError, match="bytes of command line"):
        raysearch.submit(
            f"{task}:make_task", "avg_bits<=4", tmp_path, address="http://127.0.0.1:1",
            config=load_config(overrides={"search": {"latency_profile": {"layers": layers}}}),
        )  # fmt: skip
