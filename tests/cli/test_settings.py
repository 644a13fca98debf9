"""`raysearch config`, `--version` and `list`, as they are typed."""

import json
import tomllib

import pytest

from raysearch.artifacts import RunStore, codecs
from raysearch.cli import app
from raysearch.config import Config
from raysearch.records import RunStatus
from raysearch.version import __version__


@pytest.fixture
def run(capfd, monkeypatch):
    """A command, as the file descriptors see it: JSON goes there."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        app([*words], standalone_mode=False)
        return capfd.readouterr().out

    return call


def test_the_version_is_told(run):
    assert run("--version") == f"raysearch {__version__}\n"


def test_the_settings_in_force_are_a_file_that_reads_back(run, tmp_path):
    text = run("config", "--set", "training.epochs=3", "--set", "placement.overrides.fc.bits=[2, 4]")
    path = tmp_path / "settings.toml"
    path.write_text(text)
    assert run("config", "-c", str(path)) == text
    assert tomllib.loads(text)["training"]["epochs"] == 3
    assert json.loads(run("config", "-c", str(path), "--json"))["placement"]["overrides"]["fc"]["bits"] == [
        2,
        4,
    ]


def test_the_schema_knows_every_section(run):
    schema = json.loads(run("config", "--schema"))
    assert set(schema["properties"]) == set(Config.model_fields)


def test_a_list_takes_no_text_for_markup(run, tmp_path):
    store = RunStore(tmp_path, "run-1")
    store.create({"task": "[/x].py:make", "budget": ["[red]size<=10%"]})
    store.save(codecs.STATUS, RunStatus("run-1", "running", "search", 3, 8, message="[/bold]"))
    text = run("list", "--storage", str(tmp_path))
    assert "[red]size<=10%" in text
    assert "[/bold]" in text
    assert json.loads(run("list", "--storage", str(tmp_path), "--json"))[0]["run_id"] == "run-1"
    assert run("list", "--storage", str(tmp_path / "none")).startswith("no runs in ")
