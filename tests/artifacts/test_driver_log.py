"""What a driver logs in its run's folder, and that nothing else is touched."""

import json
import logging
import warnings

from raysearch.artifacts import DRIVER_LOG, RunStore, driver_log

logger = logging.getLogger("raysearch.somewhere")


def entries(store):
    return [json.loads(line) for line in store.storage.read_bytes(DRIVER_LOG).decode().splitlines()]


def test_events_and_warnings_are_lines_and_a_resumed_run_adds_to_them(store, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *about: shown.append(about))
    package = logging.getLogger("raysearch")
    before = package.level, list(package.handlers), warnings.showwarning
    with driver_log(store):
        logger.info("running, %s", "search")
        warnings.showwarning(UserWarning("beware\nof this"), UserWarning, "file.py", 1)
    with driver_log(store):
        logger.warning("a worker died")
    logger.warning("after the run")
    assert (package.level, list(package.handlers), warnings.showwarning) == before
    lines = entries(store)
    assert len(shown) == 1
    messages = ["running, search", "UserWarning: beware\nof this", "a worker died"]
    assert [line["message"] for line in lines] == messages
    assert [line["level"] for line in lines] == ["info", "warning", "warning"]
    assert lines[0]["source"] == "raysearch.somewhere"
    assert lines[0]["time"] <= lines[2]["time"]


def test_an_object_store_gets_the_whole_log_at_the_end():
    store = RunStore("memory://bucket/runs", "run-1")
    for message in ("first", "second"):
        with driver_log(store):
            logger.info(message)
            logger.info("%s again", message)
    assert [line["message"] for line in entries(store)] == ["first", "first again", "second", "second again"]


def test_a_folder_that_cannot_be_written_ends_no_run(store):
    with driver_log(store):
        store.storage.local_path().rename(store.storage.local_path().with_name("gone"))
        logger.info("lost")
    assert not store.storage.exists(DRIVER_LOG)
