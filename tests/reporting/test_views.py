"""Tables and figures of a run, as notebooks ask for them; no run is needed, only its records."""

import builtins
from dataclasses import replace

import pytest

from raysearch.artifacts import RunStore, codecs
from raysearch.errors import ConfigError, StorageError
from raysearch.saved_run import SavedRun
from tests.support.run_records import make_report_records


@pytest.fixture(scope="module")
def records():
    return make_report_records()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, records):
    store = RunStore(tmp_path_factory.mktemp("runs"), "run")
    store.create({"task": "t:f", "budget": ["avg_bits<=4"]}, {}, {})
    store.save(codecs.SETUP, records.setup)
    store.save(codecs.SEARCH, records.search)
    store.save(codecs.SENSITIVITY, records.sensitivity)
    store.save(codecs.FINE_TUNE, records.fine_tune)
    store.save(codecs.RESULT, records.result)
    return SavedRun(store)


def test_tables_are_data_frames_of_plain_columns(saved, records):
    trials = saved.trials
    assert list(trials["trial"]) == list(range(12))
    assert trials["size"].dtype == trials["value"].dtype == "float64"
    assert set(saved.front["trial"]) == {trial.number for trial in records.search.front}
    chosen = saved.assignments.set_index("trial").loc[records.search.best.number]
    assert dict(chosen) == {name: str(scheme) for name, scheme in records.assignment.schemes.items()}
    assert len(saved.sensitivity) == len(records.sensitivity.effects)
    assignment = saved.assignment
    assert list(assignment["group"]) == list(records.setup.groups)
    assert assignment["share_of_loss"].sum() == pytest.approx(1)


def test_figures_are_drawn_of_what_was_measured(saved, records):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    front = saved.plot_front("avg_bits")
    drawn = sum(len(points.get_offsets()) for points in front.collections)
    assert drawn == sum(1 for trial in records.search.trials if not trial.has_failed)
    num_quantizers = len(records.setup.groups)
    assert len(saved.plot_bits().patches) == num_quantizers
    assert len(saved.plot_sensitivity().lines) == num_quantizers / 2
    assert list(saved.plot_history("accuracy").lines[0].get_xdata()) == list(range(-1, 8))
    with pytest.raises(StorageError, match="no 'speed'; it has loss, accuracy"):
        saved.plot_history("speed", axes=front)
    pyplot.close("all")


def test_a_notebook_shows_the_answer_with_names_as_text(saved, records):
    assert "accuracy 0.9512 → 0.9498" in saved._repr_html_()
    hostile = replace(records.result, run_id="<script>", float_metrics={"<b>": 1.0})
    assert "<script>" not in hostile._repr_html_()
    assert "&lt;b&gt;" in hostile._repr_html_()


@pytest.mark.parametrize("package", ["pandas", "matplotlib"])
def test_a_missing_package_is_named_with_its_extra(saved, monkeypatch, package):
    original = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"raysearch\[notebook\]"):
        assert saved.plot_front() is None if package == "matplotlib" else saved.trials is None
