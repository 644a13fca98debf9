import io
import json
import re

import pytest
from rich.console import Console

from raysearch.artifacts import RunStore, codecs
from raysearch.pipeline import progress
from raysearch.pipeline.progress import Progress, RateMeter
from raysearch.records import RunStatus, TrainingStatus
from raysearch.reporting import live
from raysearch.reporting.provenance import way_on


def test_the_rate_is_of_the_last_minute_and_leaves_out_what_was_read() -> None:
    meter = RateMeter()
    assert meter.measure("traces", 100, now=0.0) == 0.0
    # Ten seconds until the fleet is up, then two units a second.
    assert meter.measure("traces", 101, now=10.0) == pytest.approx(0.1)
    rates = [meter.measure("traces", 101 + 2 * second, now=10.0 + second) for second in range(1, 121)]
    assert rates[-1] == pytest.approx(2.0)
    assert rates == sorted(rates)
    assert meter.measure("responses", 0, now=131.0) == 0.0
    assert meter.measure("responses", 3, now=132.0) == pytest.approx(3.0)
    assert meter.measure("responses", 0, now=133.0) == 0.0, "the next batch of trials begins anew"


def test_units_longer_than_a_minute_have_a_rate() -> None:
    meter = RateMeter()
    rates = [meter.measure("traces", done, now=200.0 * done) for done in range(5)]
    assert rates[1:] == pytest.approx([1 / 200] * 4)


def test_the_status_on_disk_tells_rate_and_remaining_time(tmp_path, monkeypatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 3.0])
    store = RunStore(tmp_path, "run-1")
    store.create({}, {}, {})
    told: list[RunStatus] = []
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    tracker = Progress(store, told.append)
    for done in (5, 7, 9, 11):
        tracker.units("responses", done, 31)
    monkeypatch.undo()
    assert [(s.rate, s.remaining_seconds) for s in told] == [
        (0.0, None),
        (2.0, 12.0),
        (2.0, 11.0),
        (2.0, 10.0),
    ]
    assert store.load(codecs.STATUS).remaining_seconds == 10.0
    tracker.tell("failed", message="boom")
    assert (store.load(codecs.STATUS).rate, store.load(codecs.STATUS).remaining_seconds) == (0.0, None)


def test_a_status_from_before_rates_were_kept_is_read() -> None:
    kept = json.loads(RunStatus("r", "running", "search", 3, 9).to_json())
    del kept["rate"], kept["remaining_seconds"]
    status = RunStatus.from_json(json.dumps(kept))
    assert (status.done, status.rate, status.remaining_seconds) == (3, 0.0, None)


def shown(is_terminal: bool, statuses: list[RunStatus]) -> str:
    stream = io.StringIO()
    lines = live.ProgressLines(Console(file=stream, force_terminal=is_terminal, width=120))
    for status in statuses:
        lines(status)
        if is_terminal:
            lines._live.refresh()
    lines.close()
    return stream.getvalue()


def running(done: int, stage: str = "traces") -> RunStatus:
    return RunStatus("r[1]", "running", stage, done, 90, rate=12.0, remaining_seconds=95.0)


def test_elsewhere_than_on_a_terminal_a_line_comes_each_half_minute(monkeypatch) -> None:
    clock = iter([100.0, 110.0, 131.0, 132.0])
    monkeypatch.setattr(live.time, "monotonic", lambda: next(clock))
    text = shown(False, [running(1), running(2), running(3), running(0, "responses")])
    assert text.splitlines() == [
        "r[1]  traces 1/90, 12 units/s, 95.0 s left",
        "r[1]  traces 3/90, 12 units/s, 95.0 s left",
        "r[1]  responses 0/90, 12 units/s, 95.0 s left",
    ]


def test_a_terminal_has_a_live_bar() -> None:
    text = shown(True, [running(45), RunStatus("r[1]", "done")])
    assert "r[1]  traces 45/90, 12 units/s, 95.0 s left" in text
    assert "━" in text


def test_training_tells_its_steps_with_what_is_known_of_them(tmp_path, monkeypatch) -> None:
    clock = iter([0.0, 1.0, 2.0])
    store = RunStore(tmp_path, "run-1")
    store.create({}, {}, {})
    told: list[RunStatus] = []
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    tracker = Progress(store, told.append)
    for step in (4, 6, 8):
        status = TrainingStatus(1, 3, step, 30, 64, 0.5, 1e-3, {"loss": 0.25, "accuracy": 0.75})
        tracker.training(status)
    monkeypatch.undo()
    text = "training 8/30, 2.00 units/s, 11.0 s left, epoch 2/3, loss 0.5, 128 samples/s"
    assert live.progress_text(told[-1]) == f"{text}, validation: loss 0.25, accuracy 0.75"
    assert store.load(codecs.STATUS).details["learning_rate"] == 1e-3
    tracker.training(TrainingStatus(message="training waits for 4 workers of 1 CPU"))
    assert told[-1].message == "training waits for 4 workers of 1 CPU"


def test_a_stage_that_is_done_stays_on_a_terminal_with_its_time() -> None:
    earlier = {"calibration": 3.0}
    statuses = [
        RunStatus("r", "running", "search", seconds=earlier),
        RunStatus("r", "running", "search", 3, 9, seconds=earlier, details={"best": {"divergence": 0.25}}),
        RunStatus("r", "running", "search", seconds={**earlier, "search": 31.0, "workers": 0.01}),
        RunStatus("r", "done", seconds={**earlier, "search": 31.0, "training": 7.0}),
    ]
    text = shown(True, statuses)
    assert "r  search: 31.0 s" in text
    assert "r  training: 7.0 s" in text
    assert "best divergence 0.25" in text
    assert "calibration:" not in text, "an earlier attempt told it"
    assert "workers" not in text


def test_a_run_that_is_stopped_says_the_command_that_goes_on_with_it(tmp_path) -> None:
    started = {"config": {"task": "my task.py:make", "budget": ["size<=9%"], "seed": 3}}
    command = way_on("run-1", started, "/my runs")
    assert command == (
        "raysearch run 'my task.py:make' --budget 'size<=9%' --set seed=3 --storage '/my runs' "
        "--run-id run-1 --resume"
    )
    assert "resume=True" in way_on("run-1", {"config": {"task": "ResNet"}}, "runs")
    assert way_on("run-1", started, "/my runs", workers=0).endswith("--run-id run-1 --workers 0 --resume")
    remote = way_on("run-1", started, "s3://key:secret@bucket/runs?region=x")
    assert "--storage s3://bucket/runs --run-id run-1 --resume\n  with the keys" in remote
    assert "secret" not in remote
    store = RunStore(tmp_path, "run-1")
    store.create({}, {}, {})
    message = f"goes on with\n  {re.escape(command)}"
    tracker = Progress(store, lambda status: None)
    with pytest.raises(KeyboardInterrupt, match=message), progress.reporting(tracker, "", command):
        raise KeyboardInterrupt
    status = store.load(codecs.STATUS)
    assert (status.state, status.message.splitlines()[1].strip()) == ("cancelled", command)
