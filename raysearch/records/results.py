"""What training and export leave behind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NotRequired

from typing_extensions import TypedDict

from raysearch.errors import StorageError
from raysearch.records.typed_json import Count, read_json


@dataclass(frozen=True)
class EpochMetrics:
    """Mean metrics of the quantized model after one epoch; epoch −1 is the state before training."""

    epoch: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class FineTuneResult:
    """Outcome of quantization-aware training.

    Attributes:
        checkpoint: name of the best state in the run's folder, a safetensors file.
        best_epoch: the epoch it is from; −1 when no epoch improved on the calibrated model.
        monitor: the metric that chose it (lower is better).
        history: metrics per epoch.
        skipped: why no training took place; "" when it did.
        remarks: what a reader should know of how it went.
    """

    checkpoint: str
    best_epoch: int
    monitor: str
    history: tuple[EpochMetrics, ...]
    skipped: str = ""
    remarks: tuple[str, ...] = ()

    def note(self) -> str:
        """Why the state is one that no training step has changed; "" when training improved on it."""
        if self.skipped or self.best_epoch >= 0 or not self.history:
            return self.skipped
        before, *after = (entry.metrics[self.monitor] for entry in self.history)
        reached = min(after, default=before)
        return (
            f"training did not improve on the validation {self.monitor} ({before:.4g} before, {reached:.4g} "
            f"at best after {len(after)} epochs), so the state before training is kept; a lower "
            f"training.learning_rate may improve on it"
        )

    def notes(self) -> list[str]:
        """What a reader should know of it: remarks, why nothing was gained, and what the gain cost."""
        return [*self.remarks, self.note(), self._drift_note()]

    def _drift_note(self) -> str:
        """That the trained model is farther from the float model than before, where it is; else ""."""
        if self.best_epoch < 0 or self.monitor == "divergence":
            return ""
        before = self.history[0].metrics
        after = next(entry.metrics for entry in self.history if entry.epoch == self.best_epoch)
        if not after.get("divergence", 0.0) > before.get("divergence", math.inf):
            return ""
        agreement = ""
        if "agreement" in before:
            agreement = f", agreement {before['agreement']:.4g} and {after['agreement']:.4g}"
        return (
            f"training lowered the validation {self.monitor} from {before[self.monitor]:.4g} to "
            f"{after[self.monitor]:.4g}, and moved away from the float model: divergence "
            f"{before['divergence']:.4g} before, {after['divergence']:.4g} after{agreement}; "
            f"training.objective = 'distill' trains towards it"
        )

    def to_json(self) -> str:
        """The result as JSON text."""
        data = asdict(self)
        # Results of before there were any lack them.
        if not self.remarks:
            del data["remarks"]
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> FineTuneResult:
        """Read what `to_json` wrote.

        Raises:
            StorageError: the text is damaged.
        """
        data = read_json(cls, text, "finetune.json")
        history = tuple(EpochMetrics(**entry) for entry in data["history"])
        result = cls(**{**data, "history": history, "remarks": tuple(data.get("remarks", ()))})
        _check_history(result)
        return result


def _check_history(result: FineTuneResult) -> None:
    """Refuse a result whose best epoch or monitored metric its own history does not have."""
    if not result.history:
        return
    for entry in result.history:
        if result.monitor not in entry.metrics:
            raise StorageError(
                f"finetune.json is damaged: monitor is '{result.monitor:.50}', which the epoch {entry.epoch} "
                f"does not have; it has {', '.join(entry.metrics)}."
            )
    epochs = [entry.epoch for entry in result.history]
    if result.best_epoch not in epochs:
        raise StorageError(
            f"finetune.json is damaged: best_epoch is {result.best_epoch}, and its history has "
            f"{min(epochs)} to {max(epochs)}."
        )


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export: path below the model folder, SHA-256, size in bytes."""

    path: str
    sha256: str
    size_bytes: Count


@dataclass(frozen=True)
class LayerFlips:
    """Codes of one quantized activation that a runtime's kernels round differently, given the same inputs.

    Attributes:
        name: quantizer id.
        num_flips: codes that differ.
        num_codes: codes compared.
        max_steps: the greatest difference, in steps.
    """

    name: str
    num_flips: Count
    num_codes: Count
    max_steps: Count

    @property
    def rate(self) -> float:
        """Share of codes that differ."""
        return self.num_flips / max(1, self.num_codes)


@dataclass(frozen=True)
class TargetCheck:
    """How one target's file, run in its own runtime, differs from the stripped module.

    Attributes:
        target: "packed", "onnx", "openvino" or "pt2".
        runtime: name and version of what ran the file.
        max_abs_difference: over all outputs of all verification batches.
        mean_abs_difference: the mean over the same.
        agreement: share of samples with the same argmax over the last dimension; 1.0 for single outputs.
        num_samples: samples compared.
        layers: flips of codes per quantized activation, where they were counted.
    """

    target: str
    runtime: str
    max_abs_difference: float
    mean_abs_difference: float
    agreement: float
    num_samples: Count
    layers: tuple[LayerFlips, ...] = ()


@dataclass(frozen=True)
class ExportManifest:
    """What was exported and how it was verified.

    Attributes:
        files: every file of the model folder but the manifest itself.
        checks: one entry a target.
        weights_bytes: bytes of codes, scales and zero points in the packed file; the cost model's `size` is
            that of the whole model.safetensors.
        costs: the cost model's figures for the assignment.
        notes: plain statements a user should know, such as a container wider than the codes.
        size_ratios: target → bytes of its files over those of codes, scales and biases.
        latency: "onnx" and "float": median CPU seconds of a batch in onnxruntime, measured alternately in one
            process; empty when it was not asked for.
    """

    files: tuple[ExportedFile, ...]
    checks: tuple[TargetCheck, ...]
    weights_bytes: Count
    costs: Mapping[str, float]
    notes: tuple[str, ...] = ()
    size_ratios: Mapping[str, float] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps({"schema_version": 1, **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> ExportManifest:
        """Read what `to_json` wrote.

        Raises:
            StorageError: the text is damaged, or of a newer schema.
        """
        try:
            # First: of a newer schema the other keys are not known.
            version = read_json(dict[str, Any], text, "manifest.json").get("schema_version", 1)
            if version != 1:
                raise StorageError(
                    f"manifest.json has schema version {version!r:.50}; this raysearch reads 1. Update it "
                    f"with `pip install --upgrade raysearch`."
                )
            data = read_json(_ManifestForm, text, "manifest.json")
        except StorageError as error:
            raise StorageError(f"{error} Retrieve or export the model again.") from error
        del data["schema_version"]
        data["files"] = tuple(ExportedFile(**entry) for entry in data["files"])
        data["checks"] = tuple(_check_from(entry) for entry in data["checks"])
        data["notes"] = tuple(data["notes"])
        return cls(**data)


class _ManifestForm(TypedDict):
    schema_version: int
    files: list[ExportedFile]
    checks: list[TargetCheck]
    weights_bytes: Count
    costs: dict[str, float]
    notes: list[str]
    size_ratios: NotRequired[dict[str, float]]
    latency: NotRequired[dict[str, float]]


def _check_from(entry: Mapping[str, Any]) -> TargetCheck:
    layers = tuple(LayerFlips(**layer) for layer in entry.get("layers", ()))
    return TargetCheck(**{**entry, "layers": layers})
