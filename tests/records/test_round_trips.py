import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysearch.artifacts.tables import from_parquet, to_parquet
from raysearch.errors import ConfigError, PlacementError, StorageError
from raysearch.records import (
    BitAssignment,
    EpochMetrics,
    ExportedFile,
    ExportManifest,
    FineTuneResult,
    LatencyProfile,
    LayerFlips,
    LeastCost,
    LiveTensor,
    QuantizerRange,
    QuantizerSetup,
    RangeTable,
    RunStatus,
    Scheme,
    SearchResult,
    SensitivityTable,
    TargetCheck,
    Trace,
    trials_from_table,
    trials_to_table,
)
from raysearch.records.low_rank import LowRank
from tests.support.small_records import (
    assignments,
    setups,
    small_ranges,
    small_setup,
    small_table,
    small_trials,
)

FINE_TUNE = FineTuneResult("best.safetensors", -1, "loss", (EpochMetrics(-1, {"loss": 2.0}),), "")
MANIFEST = ExportManifest(
    (ExportedFile("a.onnx", "00ff", 12),),
    (TargetCheck("onnx", "onnxruntime 1.22", 1e-7, 1e-8, 1.0, 16, (LayerFlips("fc.input", 1, 400, 1),)),),
    20,
    {"size": 20.0},
    ("a note",),
    {"onnx": 1.02},
    {"onnx": 0.5, "float": 1.25},
)
STATUS = RunStatus("r", "running", "search", 3, 9, {"search": 1.5}, 1e9, "")
JSON_RECORDS = [small_setup(), FINE_TUNE, MANIFEST, STATUS]


@given(setups())
def test_setup(setup):
    again = QuantizerSetup.from_json(setup.to_json())
    assert again == setup
    assert list(again.points) == list(setup.points)
    assert again.fingerprint() == setup.fingerprint()


@pytest.mark.parametrize("record", JSON_RECORDS, ids=lambda record: type(record).__name__)
class TestJson:
    def test_round_trip(self, record):
        assert type(record).from_json(record.to_json()) == record

    def test_every_cut_is_named_as_damage(self, record):
        text = record.to_json()
        for cut in range(0, len(text) - 1, 7):
            with pytest.raises(StorageError, match="damaged"):
                type(record).from_json(text[:cut])

    @pytest.mark.parametrize(
        "text", ["null", "[]", "3", '"x"', '{"other": 1}', '{"points": ["a"], "groups": []}']
    )
    def test_other_json_is_named_as_damage(self, record, text):
        with pytest.raises(StorageError, match="damaged"):
            type(record).from_json(text)


def test_a_setup_whose_groups_miss_a_point_is_damaged():
    data = json.loads(small_setup().to_json())
    data["groups"].pop()
    with pytest.raises(StorageError, match="exactly one group"):
        QuantizerSetup.from_json(json.dumps(data))


def test_schemes_stand_in_a_setup_only_where_they_are_more_than_widths():
    setup = small_setup()
    assert "schemes" not in setup.to_json()
    ga = setup.groups["ga"]
    mixed = replace(setup, groups={**setup.groups, "ga": replace(ga, schemes=map(Scheme.of, [2, "3g4a", 4]))})
    again = QuantizerSetup.from_json(mixed.to_json())
    assert again == mixed
    assert json.loads(mixed.to_json())["groups"][0]["schemes"] == [2, "3g4a", 4]
    assert again.groups["ga"].bit_widths == (2, 3, 4)
    with pytest.raises(StorageError, match="no scheme"):
        QuantizerSetup.from_json(mixed.to_json().replace("3g4a", "3h4a"))


def test_a_newer_manifest_is_refused():
    text = MANIFEST.to_json().replace('"schema_version": 1', '"schema_version": 2')
    with pytest.raises(StorageError, match="schema version 2"):
        ExportManifest.from_json(text)


def test_sensitivity_table():
    table = small_table()
    again = SensitivityTable.from_tables(table.traces_table(), table.effects_table(), table.gram_table())
    assert again.traces == table.traces
    assert [t.converged for t in again.traces.values()] == [False, True]
    # As text: from Python 3.13 on a record with a NaN equals no other.
    assert repr(list(again.effects.items())) == repr(list(table.effects.items()))
    assert np.array_equal(again.gram, table.gram)
    assert again.fingerprint == "mark"
    rows = np.arange(3.0 * len(table.effects)).reshape(-1, 3)
    factored = replace(table, gram=LowRank(rows))
    again = SensitivityTable.from_tables(table.traces_table(), table.effects_table(), factored.gram_table())
    assert isinstance(again.gram, LowRank)
    assert np.array_equal(again.gram.factor, rows)
    other = factored.gram_table().replace_schema_metadata({"form": "cube"})
    with pytest.raises(StorageError, match="form 'cube', which this version"):
        SensitivityTable.from_tables(table.traces_table(), table.effects_table(), other)


def test_a_sensitivity_table_of_schemes():
    table = small_table()
    schemes = [Scheme.of(value) for value in ("2", "2g4", "2g4a", "8", "3g2", "8", "8a")]
    pairs = zip(table.effects.values(), schemes, strict=True)
    effects = [replace(effect, scheme=scheme) for effect, scheme in pairs]
    table = replace(table, effects={(effect.group, effect.scheme): effect for effect in effects})
    again = SensitivityTable.from_tables(table.traces_table(), table.effects_table(), table.gram_table())
    assert repr(again.effects) == repr(table.effects)
    assert again.gram.tobytes() == table.gram.tobytes()
    assert table.gram_table().column("scheme").to_pylist() == list(map(str, schemes))


def test_the_error_of_a_sketch_is_kept_and_unknown_in_old_tables():
    table = replace(small_table(), sketch_error=0.1 + 0.2)
    tables = table.traces_table(), table.effects_table(), table.gram_table()
    assert SensitivityTable.from_tables(*tables).sketch_error == 0.1 + 0.2
    old = tables[2].replace_schema_metadata(None)
    assert math.isnan(SensitivityTable.from_tables(*tables[:2], old).sketch_error)


def test_an_unknown_data_error_is_kept():
    trace = Trace("a", 1.0, 0.1, 0.1, float("nan"), 8, 32, "hutchinson", True)
    one = SensitivityTable({"a": trace}, small_table().effects, small_table().gram, "mark")
    again = SensitivityTable.from_tables(one.traces_table(), one.effects_table(), one.gram_table())
    assert math.isnan(again.traces["a"].data_stderr)
    assert again.traces["a"].probe_stderr == 0.1


def _tables() -> dict[str, pa.Table]:
    table = small_table()
    return {"traces": table.traces_table(), "effects": table.effects_table(), "gram": table.gram_table()}


@pytest.mark.parametrize(
    "change",
    [
        {"traces": _tables()["traces"].drop_columns(["stderr"])},
        {"traces": _tables()["traces"].drop_columns(["data_stderr", "estimator", "converged"])},
        {"effects": _tables()["effects"].replace_schema_metadata(None)},
        {"effects": _tables()["effects"].slice(1)},
        {"gram": _tables()["gram"].slice(1)},
        {"gram": _tables()["gram"].drop_columns(["gram"])},
        {"traces": _tables()["effects"]},
        {"traces": _tables()["traces"].replace_schema_metadata({"fingerprint": "other"})},
    ],
)
def test_damaged_sensitivity_tables(change):
    with pytest.raises(StorageError):
        SensitivityTable.from_tables(**{**_tables(), **change})


def test_a_gram_matrix_of_another_size_is_refused():
    table = small_table()
    with pytest.raises(ValueError, match="gram is"):
        SensitivityTable(table.traces, table.effects, table.gram[1:], "mark")


def test_ranges():
    table = small_ranges()
    again = RangeTable.from_bytes(table.to_bytes())
    assert set(again.ranges) == set(table.ranges)
    for key, value in table.ranges.items():
        assert np.array_equal(again[key].scale, value.scale)
        assert np.array_equal(again[key].zero_point, value.zero_point)
        assert again[key].signed is value.signed
        assert again[key].zero_point.dtype == np.int32


def test_ranges_of_schemes():
    plain = QuantizerRange(np.ones(2, np.float32), np.zeros(2, np.int32), True)
    grouped = QuantizerRange(np.ones(4, np.float32), np.ones(4, np.int32), True)
    table = RangeTable({("a", 4): plain, ("a", Scheme.of("4g4a")): grouped}, {("a", "4g4a"): plain})
    again = RangeTable.from_bytes(table.to_bytes())
    assert set(again.ranges) == set(table.ranges)
    assert again["a", "4g4a"].scale.tolist() == [1, 1, 1, 1]
    assert table["a", "4g4a"] is table.rounded["a", Scheme.of("4g4a")] is plain


def test_every_cut_of_ranges_is_named_as_damage():
    data = small_ranges().to_bytes()
    for cut in range(len(data)):
        with pytest.raises(StorageError, match="damaged"):
            RangeTable.from_bytes(data[:cut])


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_flipped_byte_of_ranges_is_read_or_refused(at, flip):
    data = bytearray(small_ranges().to_bytes())
    data[at % len(data)] ^= flip
    try:
        table = RangeTable.from_bytes(bytes(data))
    except StorageError:
        return
    assert all(np.isfinite(value.scale).all() for value in table.ranges.values())


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_a_scale_is_finite_and_positive(scale):
    with pytest.raises(ValueError, match="finite and positive"):
        QuantizerRange(np.array([scale], np.float32), np.zeros(1, np.int32), True)


def test_trials():
    trials = small_trials()
    again = trials_from_table(trials_to_table(trials))
    # NaN equals nothing, so it is compared by its text.
    assert repr(again) == repr(trials)
    assert trials_from_table(trials_to_table(())) == ()


@pytest.mark.parametrize("column", ["value", "assignment", "excess"])
def test_trials_without_a_column(column):
    with pytest.raises(StorageError, match="damaged"):
        trials_from_table(trials_to_table(small_trials()).drop_columns([column]))


@pytest.mark.parametrize("text", ["{", None])
def test_trials_with_damaged_text(text):
    table = trials_to_table(small_trials())
    column = pa.array([text] * table.num_rows, type=pa.string())
    with pytest.raises(StorageError, match="damaged"):
        trials_from_table(table.set_column(table.schema.get_field_index("costs"), "costs", column))


def test_search_result():
    trials = small_trials()
    result = SearchResult(trials[2], trials, (trials[2],), 0.01, {"greedy": 0.25})
    text = result.to_json()
    assert repr(SearchResult.from_records(text, trials, result.front)) == repr(result)
    for damaged in (text[:50], text.replace('"trial": 2', '"trial": 7'), "[]", "null"):
        with pytest.raises(StorageError, match="damaged"):
            SearchResult.from_records(damaged, trials, trials)


def test_trials_of_schemes():
    trial = replace(small_trials()[0], assignment=BitAssignment({"ga": "4g64a", "gx": 8}))
    table = trials_to_table((trial,))
    (again,) = trials_from_table(table)
    assert again.assignment == trial.assignment
    assert table.column("assignment").to_pylist() == [{"ga": "4g64a", "gx": 8}]
    place = table.schema.get_field_index("assignment")
    # As a struct, and as the text of earlier versions.
    for column in (pa.array([{"ga": "4h64", "gx": 8}]), pa.array(['{"ga": "4h64", "gx": 8}'])):
        with pytest.raises(StorageError, match="4h64"):
            trials_from_table(table.set_column(place, "assignment", column))


def test_columns_of_trials_can_be_filtered_in_a_file(tmp_path):
    every = [replace(trial, rounds={8: 0.5, 16: 0.25}) for trial in small_trials()]
    # One trial leaves a group float, and has no cost of one kind.
    every[2] = replace(every[2], assignment=BitAssignment({"ga": 4, "gb": 8}), costs={"size": 30.0})
    pq.write_table(trials_to_table(tuple(every)), tmp_path / "trials.parquet")
    table = pq.read_table(tmp_path / "trials.parquet")
    assert repr(trials_from_table(table)) == repr(tuple(every))
    large = (pc.field("assignment", "ga") > 2) & (pc.field("costs", "size") > 25)
    few = pq.read_table(tmp_path / "trials.parquet", filters=large)
    assert few.column("number").to_pylist() == [2]


def test_trials_of_earlier_versions_are_json_texts():
    table = trials_to_table(small_trials())
    for name in ("assignment", "costs", "excess", "rounds"):
        values = [dict(value) for value in table.column(name).to_pylist()]
        texts = pa.array([json.dumps(value) for value in values])
        table = table.set_column(table.schema.get_field_index(name), name, texts)
    assert repr(trials_from_table(table)) == repr(small_trials())
    without = table.drop_columns(["rounds", "num_samples", "system_attrs"])
    assert repr(trials_from_table(without)) == repr(small_trials())


def test_trials_without_costs_fit_in_a_file():
    none = {"costs": {}, "excess": {}, "assignment": BitAssignment({})}
    trials = tuple(replace(trial, **none) for trial in small_trials())
    assert repr(trials_from_table(from_parquet(to_parquet(trials_to_table(trials)), "t"))) == repr(trials)


@given(setups(), st.data())
def test_assignment_digest_and_points(setup, data):
    assignment = data.draw(assignments(setup))
    assignment.check(setup)
    backwards = BitAssignment(dict(reversed(assignment.bits.items())))
    assert backwards.digest() == assignment.digest()
    points = assignment.per_point(setup)
    assert list(points) == list(setup.points)
    assert all(points[p] == assignment.bits[setup.group_of(p).id] for p in points)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"ga": "4g64", "gx": 8, "gb": 3}, "'ga' the scheme 4g64; allowed: 2, 4, 8"),
        ({"ga": 2, "gx": 8}, "no bit-width for the group 'gb'"),
        ({"ga": 2, "gx": 8, "gb": 3, "gz": 3}, "'gz', which is no group"),
        ({"ga": 3, "gx": 8, "gb": 3}, "'ga' 3 bits; allowed: 2, 4, 8"),
    ],
)
def test_an_assignment_that_does_not_fit(bits, message):
    with pytest.raises(PlacementError, match=message):
        BitAssignment(bits).check(small_setup())


def test_uniform_takes_the_nearest_weights_and_the_widest_activations():
    assert BitAssignment.uniform(small_setup(), 3).bits == {"ga": 2, "gx": 8, "gb": 3}
    assert BitAssignment.uniform(small_setup(), 6).bits == {"ga": 4, "gx": 8, "gb": 8}


def test_a_setup_keeps_its_tensors_and_measured_times():
    tensors = (LiveTensor("conv", 5, "x", 0, 3), LiveTensor("out", 2, "", 3, 4))
    levels = {"float": 0.1, "8": 1 / 3, "w4a8": 1e-7}
    profile = LatencyProfile({"a": levels, "b": levels}, 0.25, {"cpu": "x"}, "ort", {"onnxruntime": "1"})
    setup = replace(small_setup(), tensors=tensors, latency=profile)
    assert QuantizerSetup.from_json(setup.to_json()) == setup
    assert LatencyProfile.from_json(profile.to_json()) == profile
    assert setup.fingerprint() != small_setup().fingerprint()
    for text in ("", "[]", '{"layers": 3}', '{"layers": {"a": {"float": "x", "8": 1}}}'):
        with pytest.raises(ConfigError, match="cannot be read"):
            LatencyProfile.from_json(text)


def test_training_that_did_not_improve_says_what_it_reached():
    history = (
        EpochMetrics(-1, {"loss": 0.25}),
        EpochMetrics(0, {"loss": 0.5}),
        EpochMetrics(1, {"loss": 0.375}),
    )
    note = FineTuneResult("best.safetensors", -1, "loss", history).note()
    assert "validation loss (0.25 before, 0.375 at best after 2 epochs)" in note
    assert FineTuneResult("best.safetensors", 1, "loss", history).note() == ""
    assert FineTuneResult("best.safetensors", -1, "", (), "no data").note() == "no data"


def test_a_training_that_moved_away_from_the_float_model_says_so():
    before = {"loss": 2.0, "divergence": 0.0083, "agreement": 0.997}
    after = {"loss": 1.5, "divergence": 0.0207, "agreement": 0.99}
    entries = (EpochMetrics(-1, before), EpochMetrics(0, after))
    (note,) = filter(None, FineTuneResult("best.safetensors", 0, "loss", entries).notes())
    assert "divergence 0.0083 before, 0.0207 after, agreement 0.997 and 0.99" in note
    entries = (entries[0], EpochMetrics(0, {**after, "divergence": 0.008}))
    result = FineTuneResult("best.safetensors", 0, "loss", entries, remarks=("went on",))
    assert [note for note in result.notes() if note] == ["went on"]
    assert FineTuneResult.from_json(result.to_json()) == result


@pytest.mark.parametrize("direction", ["maximize", ""])
def test_the_least_cost_of_another_trial_is_that_trial(direction):
    least = LeastCost("size", 90.0, "accuracy", "accuracy=1%", 0.01, 0.75, 0.5, 0.25, direction=direction)
    assert "is_taken" not in least.as_dict()
    taken = least.taken(120.0, 0.625)
    assert (taken.cost, taken.value, taken.drop) == (120.0, 0.625, 0.125)
    assert taken.describe().startswith("The size of the chosen trial with accuracy=1% is 120")
    assert LeastCost.from_dict(taken.as_dict()) == taken
