"""The folder of one run: every record under its name, typed."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from raysearch.artifacts.location import check_name
from raysearch.artifacts.run_id import split_run, valid_run_id
from raysearch.artifacts.run_record import first_difference, read_run_record, run_record_bytes
from raysearch.artifacts.storage import Storage
from raysearch.artifacts.tables import from_arrow, from_json, from_parquet, to_arrow, to_parquet
from raysearch.errors import StorageError
from raysearch.records import (
    ExportManifest,
    FineTuneResult,
    LeastCost,
    QuantizerSetup,
    RangeTable,
    RunResult,
    RunStatus,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    trials_from_table,
    trials_to_table,
)

RECORDS: Mapping[str, tuple[str, ...]] = {
    "run": ("run.json",),
    "status": ("status.json",),
    "setup": ("setup.json",),
    "ranges": ("ranges.safetensors",),
    "sensitivity": ("responses.arrow", "traces.parquet", "sensitivity.parquet"),
    "search": ("trials.parquet", "front.parquet", "best.json"),
    "finetune": ("finetune.json",),
    "metrics": ("metrics.json",),
    "manifest": ("model/manifest.json",),
    "report": ("report.html",),
    "result": ("result.json",),
}
"""Record → its files in the order they are written: when the last one is there, the record is whole."""


class RunStore:
    """Saves and loads the records of one run; each file is written whole or not at all.

    Attributes:
        run_id: the run.
        storage: the run's folder.

    Args:
        storage_uri: the folder or URI that holds runs.
        run_id: the run's name there.

    Raises:
        StorageError: the storage's scheme is unknown, or the run id is not one.
    """

    def __init__(self, storage_uri: str | os.PathLike[str], run_id: str) -> None:
        self.run_id = valid_run_id(run_id)
        self.storage = Storage(storage_uri).child(run_id)

    @property
    def uri(self) -> str:
        """Where the folder is, without credentials: fit for records and messages."""
        return self.storage.shown()

    def create(
        self,
        config: Mapping[str, Any],
        fingerprints: Mapping[str, Any] | None = None,
        versions: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the folder of a new run.

        Args:
            config: the settings as plain values.
            fingerprints: name → hash of what the settings point to, such as the model's weights.
            versions: package → version.

        Raises:
            StorageError: a run, or something else, is already there.
        """
        if self.has("run"):
            raise StorageError(
                f"the run '{self.run_id}' exists already at {self.uri}. Use --resume to go on with it, or "
                "another --run-id."
            )
        if found := self.storage.list():
            raise StorageError(
                f"{self.uri} exists and is no run: it has no run.json, but holds '{found[0]}'. Use another "
                "--run-id or --storage."
            )
        record = run_record_bytes(self.run_id, config, fingerprints or {}, versions or {})
        self.storage.write_bytes("run.json", record)

    def open(self) -> dict[str, Any]:
        """The content of `run.json` of an existing run.

        Raises:
            StorageError: there is no run here, it is not raysearch's, or a newer raysearch wrote it.
        """
        if not self.has("run"):
            why = "has no run.json: it is no run" if self.storage.exists() else "does not exist"
            raise StorageError(
                f"there is no run '{self.run_id}': {self.uri} {why}. Check the run id and --storage."
            )
        return read_run_record(self.storage.read_bytes("run.json"), self.storage.shown("run.json"))

    def check_same(
        self,
        config: Mapping[str, Any],
        fingerprints: Mapping[str, Any] | None = None,
        ignore: Collection[str] = (),
    ) -> None:
        """Refuse to go on with a run under other settings: its records would not belong together.

        Args:
            config: the settings of now.
            fingerprints: the fingerprints of now; None leaves them unchecked.
            ignore: dotted settings that do not change the answer, such as the number of workers.

        Raises:
            StorageError: names the first field that differs, with both values.
        """
        record = self.open()
        found = first_difference(record["config"], config, ignore)
        if found is None and fingerprints is not None:
            marks = {"fingerprints": record.get("fingerprints", {})}
            found = first_difference(marks, {"fingerprints": fingerprints})
        if found is not None:
            raise StorageError(
                f"the run '{self.run_id}' cannot go on with other settings: {found}. Set it back, or start a "
                "new run with another --run-id."
            )

    def has(self, name: str) -> bool:
        """Whether a record (a key of `RECORDS`) is there whole, or a file of this name exists."""
        return self.storage.exists(RECORDS[name][-1] if name in RECORDS else name)

    def save_status(self, status: RunStatus) -> None:
        """Write `status.json`."""
        self._write_text("status.json", status.to_json())

    def load_status(self) -> RunStatus:
        """Read `status.json`."""
        return RunStatus.from_json(self._read_text("status.json"))

    def save_setup(self, setup: QuantizerSetup) -> None:
        """Write `setup.json`."""
        self._write_text("setup.json", setup.to_json())

    def load_setup(self) -> QuantizerSetup:
        """Read `setup.json`."""
        return QuantizerSetup.from_json(self._read_text("setup.json"))

    def save_ranges(self, ranges: RangeTable) -> None:
        """Write `ranges.safetensors`."""
        self.storage.write_bytes("ranges.safetensors", ranges.to_bytes())

    def load_ranges(self) -> RangeTable:
        """Read `ranges.safetensors`."""
        return RangeTable.from_bytes(self.storage.read_bytes("ranges.safetensors"))

    def save_sensitivity(self, table: SensitivityTable) -> None:
        """Write `responses.arrow`, `traces.parquet` and `sensitivity.parquet`."""
        # The fingerprint goes into the third table as well, so that no mixture of two runs can be read.
        gram = table.gram_table()
        gram = gram.replace_schema_metadata({**gram.schema.metadata, "fingerprint": table.fingerprint})
        self.storage.write_bytes("responses.arrow", to_arrow(gram))
        self.storage.write_bytes("traces.parquet", to_parquet(table.traces_table()))
        self.storage.write_bytes("sensitivity.parquet", to_parquet(table.effects_table()))

    def load_sensitivity(self) -> SensitivityTable:
        """Read the three tables of the sensitivity stage.

        Raises:
            StorageError: a table is missing or damaged, or they belong to different measurements.
        """
        gram = from_arrow(self.storage.read_bytes("responses.arrow"), self.storage.shown("responses.arrow"))
        traces, effects = self._read_parquet("traces.parquet"), self._read_parquet("sensitivity.parquet")
        marks = [(t.schema.metadata or {}).get(b"fingerprint", b"").decode() for t in (gram, effects)]
        if marks[0] != marks[1] or gram.num_rows != effects.num_rows:
            raise StorageError(
                f"{self.storage.shown('responses.arrow')} ({gram.num_rows} options of '{marks[0]}') and "
                f"sensitivity.parquet ({effects.num_rows} of '{marks[1]}') belong to different measurements. "
                "Start the run anew."
            )
        return SensitivityTable.from_tables(traces, effects, gram)

    def save_search(self, result: SearchResult) -> None:
        """Write `trials.parquet`, `front.parquet` and `best.json`."""
        self.save_trials(result.trials)
        self.storage.write_bytes("front.parquet", to_parquet(trials_to_table(result.front)))
        self._write_text("best.json", result.to_json())

    def save_trials(self, trials: tuple[SearchTrial, ...]) -> None:
        """Write `trials.parquet` of a search that still runs."""
        self.storage.write_bytes("trials.parquet", to_parquet(trials_to_table(trials)))

    def load_trials(self) -> tuple[SearchTrial, ...]:
        """Read `trials.parquet`; empty when no batch was finished yet."""
        if not self.has("trials.parquet"):
            return ()
        return trials_from_table(self._read_parquet("trials.parquet"))

    def load_search(self) -> SearchResult:
        """Read `best.json` and the two tables of trials."""
        trials, front = self._read_parquet("trials.parquet"), self._read_parquet("front.parquet")
        return SearchResult.from_records(self._read_text("best.json"), trials, front)

    def save_least_cost(self, found: LeastCost) -> None:
        """Write `least_cost.json`."""
        self._write_text("least_cost.json", json.dumps(found.as_dict(), indent=1))

    def load_least_cost(self) -> LeastCost:
        """Read `least_cost.json`."""
        shown = self.storage.shown("least_cost.json")
        return LeastCost.from_dict(from_json(self.storage.read_bytes("least_cost.json"), shown))

    def save_finetune(self, result: FineTuneResult) -> None:
        """Write `finetune.json`."""
        self._write_text("finetune.json", result.to_json())

    def load_finetune(self) -> FineTuneResult:
        """Read `finetune.json`."""
        return FineTuneResult.from_json(self._read_text("finetune.json"))

    def save_metrics(self, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Write `metrics.json`: "float" and "quantized" → metric → value."""
        plain = {name: dict(values) for name, values in metrics.items()}
        self._write_text("metrics.json", json.dumps(plain, indent=1))

    def load_metrics(self) -> dict[str, dict[str, float]]:
        """Read `metrics.json`."""
        return from_json(self.storage.read_bytes("metrics.json"), self.storage.shown("metrics.json"))

    def save_checkpoint(self, name: str, data: bytes) -> None:
        """Write a state of the training."""
        self.storage.write_bytes(f"checkpoints/{check_name(name)}", data)

    def load_checkpoint(self, name: str) -> bytes:
        """Read a state of the training."""
        return self.storage.read_bytes(f"checkpoints/{check_name(name)}")

    def save_model(self, folder: Path) -> None:
        """Copy the files of an export into `model/`, `manifest.json` last; what an older one left goes."""
        files = Storage(folder).list()
        for name in sorted(files, key=lambda n: (n == "manifest.json", n)):
            self.storage.write_file(f"model/{name}", folder / name)
        for name in set(self.storage.list("model")) - {f"model/{name}" for name in files}:
            self.storage.delete_file(name)

    def load_manifest(self) -> ExportManifest:
        """Read `model/manifest.json`."""
        return ExportManifest.from_json(self._read_text("model/manifest.json"))

    def save_report(self, html: str) -> None:
        """Write `report.html`."""
        self._write_text("report.html", html)

    def save_result(self, result: RunResult) -> None:
        """Write `result.json`: the last file of a run, whose presence says that it is complete."""
        self._write_text("result.json", json.dumps(result.to_dict(), indent=1))

    def load_result(self) -> RunResult:
        """Read `result.json`.

        Raises:
            StorageError: it is missing or damaged.
        """
        shown = self.storage.shown("result.json")
        try:
            return RunResult.from_dict(from_json(self.storage.read_bytes("result.json"), shown))
        except (KeyError, TypeError) as error:
            raise StorageError(f"{shown} is damaged: {error!r}. Run with --resume.") from error

    def _read_text(self, name: str) -> str:
        return self.storage.read_bytes(name).decode(errors="replace")

    def _write_text(self, name: str, text: str) -> None:
        self.storage.write_bytes(name, text.encode())

    def _read_parquet(self, name: str) -> Any:
        return from_parquet(self.storage.read_bytes(name), self.storage.shown(name))


def resolve_run(run: str | os.PathLike[str], storage: str | os.PathLike[str] | None = None) -> RunStore:
    """The store of an existing run, from its id and a storage, or from the path or URI of its folder.

    Raises:
        StorageError: there is no such run.
    """
    store = RunStore(*split_run(run, storage))
    store.open()
    return store
