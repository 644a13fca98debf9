"""The sections of the settings: names, defaults, what is allowed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from raysearch.calibration import Estimator
from raysearch.errors import ConfigError
from raysearch.records import LatencyProfile, MaxDrop, parse_max_drop
from raysearch.sensitivity.estimators import PER_SAMPLE, EstimatorName, TraceLoss

Width = Annotated[int, Field(ge=2, le=8)]
Percent = Annotated[float, Field(ge=0, le=100)]
CostKind = Literal["none", "size", "bops", "avg_bits", "act_bits", "activation_memory", "latency"]
"""A cost that the search can minimise."""


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused and nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OverrideConfig(Section):
    """What is set for the layers or quantizers of one scope; null leaves it as it is."""

    bits: Width | tuple[Width, ...] | None = None
    mode: Literal["symmetric", "asymmetric"] | None = None
    granularity: Literal["per_channel", "per_tensor"] | None = None
    signed: bool | None = None
    pinned: Width | None = None


class PlacementConfig(Section):
    """Where quantizers go and which widths they may take."""

    weight_bit_widths: tuple[Width, ...] = Field((2, 3, 4, 8), min_length=1)
    activation_bit_widths: tuple[Width, ...] = Field((8,), min_length=1)
    pins: dict[str, Width] = Field(default_factory=dict)
    target_scopes: tuple[str, ...] = ()
    ignored_scopes: tuple[str, ...] = ()
    overrides: dict[str, OverrideConfig] = Field(default_factory=dict)
    profile: str = "any"


class CalibrationConfig(Section):
    """Samples, shards and range estimators."""

    num_samples: int = Field(256, ge=1)
    shard_size: int = Field(32, ge=1)
    weights: Estimator = "mse"
    activations: Estimator = "mse"
    overrides: dict[str, Estimator] = Field(default_factory=dict)
    percentiles: tuple[Percent, Percent] = (0.1, 99.9)
    reference: bool = False
    batch_norm_samples: int = Field(0, ge=0)


class ObjectiveConfig(Section):
    """The label-free objective: how far outputs are from the float model's."""

    divergence: Literal["kl", "mse", "nmse", "cosine"] = "kl"
    class_dim: int = -1


class SensitivityConfig(Section):
    """Traces and responses."""

    estimator: EstimatorName = "ggn"
    relative_error: float = Field(0.05, gt=0, allow_inf_nan=False)
    max_draws: int = Field(256, ge=2)
    draw_chunk: int | None = Field(None, ge=1)
    option_chunk: int = Field(8, ge=1)
    sketch_size: int = Field(4096, ge=16)
    trace_loss: TraceLoss = "divergence"
    trace_samples: int = Field(0, ge=0)
    importance_draws: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _suits_the_loss(self) -> SensitivityConfig:
        if self.estimator == "xnystrace" and self.trace_loss == "loss":
            raise ValueError(
                "the estimator 'xnystrace' is for the divergence, whose blocks are positive semi-definite; "
                "take 'xtrace' or trace_loss 'divergence'"
            )
        if self.importance_draws and self.estimator not in PER_SAMPLE:
            raise ValueError(
                f"importance_draws is {self.importance_draws}, but the estimator '{self.estimator}' does not "
                f"see single samples, which is needed to weigh them; take one of {', '.join(PER_SAMPLE)}, or "
                f"set importance_draws to 0"
            )
        return self


class SearchConfig(Section):
    """The study, what it measures and on how many validation samples (0: all of them)."""

    num_trials: int = Field(64, ge=1)
    batch_size: int = Field(8, ge=1)
    surrogate: Literal["response", "hawq", "fisher", "weight-error", "single-loss"] = "response"
    sampler: str = Field("auto", pattern=r"^(auto|thompson|tpe|nsga2|gp|random|brute|[\w.]+:[\w.]+)$")
    enqueue: tuple[dict[str, Width], ...] = ()
    num_samples: int = Field(512, ge=0)
    shard_size: int = Field(64, ge=1)
    objective: str = "divergence"
    direction: Literal["auto", "minimize", "maximize"] = "auto"
    racing_error: float = Field(0.05, ge=0, lt=1)
    num_finalists: int = Field(4, ge=0)
    front: CostKind = "none"
    minimize: CostKind = "none"
    max_drop: str | None = None
    latency_profile: dict[str, Any] | None = None

    @field_validator("enqueue", mode="before")
    @classmethod
    def _read_files(cls, value: Any) -> Any:
        # Read here, so that a record of the settings holds the widths and not the name of a file.
        return [_assignment(item) for item in value] if isinstance(value, list | tuple) else value

    @field_validator("latency_profile", mode="before")
    @classmethod
    def _read_profile(cls, value: Any) -> Any:
        # As `enqueue`; so the measured times also travel to a cluster.
        return _profile(value) if isinstance(value, str | Path | Mapping) else value

    @field_validator("max_drop", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            if len(value) != 1:
                raise ValueError("name one metric, such as {'accuracy': 0.01}")
            value = "=".join(str(part) for part in next(iter(value.items())))
        return parse_max_drop(value).text if isinstance(value, str) else value

    @model_validator(mode="after")
    def _asks_one_question(self) -> SearchConfig:
        if (self.minimize == "none") != (self.max_drop is None):
            raise ValueError(
                "minimize (a cost) and max_drop (METRIC=AMOUNT) are one question; give both or neither"
            )
        if self.minimize != "none" and self.front != "none":
            raise ValueError("minimize and front are two questions; leave one of them out")
        if self.drop is not None and self.objective not in ("divergence", self.drop.metric):
            raise ValueError(f"objective is {self.objective!r}, but max_drop measures {self.drop.metric!r}")
        return self

    @property
    def drop(self) -> MaxDrop | None:
        """What may drop while `minimize` is minimised; None for a search within budgets alone."""
        return None if self.max_drop is None else parse_max_drop(self.max_drop)

    @property
    def measured(self) -> str:
        """What is measured of every assignment: the objective, or what may drop."""
        return self.objective if self.drop is None else self.drop.metric

    @property
    def maximize(self) -> bool:
        """Whether more of what is measured is better: of a metric, unless said otherwise."""
        if self.direction == "auto":
            return self.measured not in ("divergence", "loss")
        return self.direction == "maximize"


class TrainingConfig(Section):
    """Quantization-aware training."""

    epochs: int = Field(10, ge=0)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    scale_learning_rate: float = Field(1e-2, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    objective: Literal["auto", "loss", "distill"] = "auto"
    num_workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1.0, gt=0)
    use_gpu: bool = False
    threads: int = Field(1, ge=1)
    max_failures: int = Field(2, ge=0)


class ExportConfig(Section):
    """Targets; by default all whose packages are installed, and the run says which are left out."""

    targets: tuple[str, ...] | None = None
    num_samples: int = Field(256, ge=1)


class ValidationConfig(Section):
    """Samples for float and quantized metrics; 0 means all."""

    num_samples: int = Field(0, ge=0)
    shard_size: int = Field(256, ge=1)


class ClusterConfig(Section):
    """The fleet. Only `threads`, `device` and `deterministic` can change a result: its rounding."""

    workers: int = Field(1, ge=0)
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float | None = Field(None, ge=0)
    threads: int = Field(1, ge=1)
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    deterministic: bool = True
    cache_bytes: int = Field(2**30, ge=0)
    unit_timeout_seconds: float = Field(600.0, gt=0)
    startup_timeout_seconds: float = Field(300.0, gt=0)

    @model_validator(mode="after")
    def _check_gpus(self) -> ClusterConfig:
        if self.device == "cuda" and self.gpus_per_worker == 0:
            raise ValueError(
                "cluster.device is 'cuda', but cluster.gpus_per_worker is 0; give 1, or the fraction of a "
                "GPU that each worker gets"
            )
        if self.device == "cpu" and self.gpus_per_worker:
            raise ValueError(
                "cluster.gpus_per_worker is set, but cluster.device is 'cpu', so the GPUs would be reserved "
                "and idle; set cluster.device to 'cuda' or 'auto'"
            )
        return self

    def num_gpus(self, cluster_has_gpus: bool) -> float:
        """GPUs that an actor asks for: as set, else one where it will compute on one.

        Example:
            >>> ClusterConfig(device="auto").num_gpus(True), ClusterConfig().num_gpus(True)
            (1.0, 0.0)
        """
        if self.gpus_per_worker is not None:
            return self.gpus_per_worker
        return 1.0 if self.device == "cuda" or (self.device == "auto" and cluster_has_gpus) else 0.0


class Config(Section):
    """All settings of a run."""

    seed: int = Field(0, ge=0)
    placement: PlacementConfig = PlacementConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    search: SearchConfig = SearchConfig()
    training: TrainingConfig = TrainingConfig()
    export: ExportConfig = ExportConfig()
    validation: ValidationConfig = ValidationConfig()
    cluster: ClusterConfig = ClusterConfig()

    def fixed(self) -> dict[str, Any]:
        """The settings that a resumed run must share: all but where and on how many workers it runs."""
        data = self.model_dump(mode="json")
        data["cluster"] = {key: data["cluster"][key] for key in ("threads", "device", "deterministic")}
        return data


def _profile(value: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A latency profile as plain values, from them or from the path of its JSON file."""
    if isinstance(value, Mapping):
        return LatencyProfile.from_json(json.dumps(dict(value))).as_dict()
    try:
        return LatencyProfile.from_json(Path(value).expanduser().read_text()).as_dict()
    except OSError as error:
        raise ConfigError(
            f"search.latency_profile: the file '{value}' cannot be read: {error.strerror}."
        ) from error


def _assignment(item: Any) -> Any:
    """Group → width; a text is the path of a JSON file with it, or of a run's best.json."""
    if not isinstance(item, str):
        return item
    try:
        data = json.loads(Path(item).expanduser().read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"the assignment file '{item}' cannot be read: {error}") from error
    return data["assignment"] if isinstance(data, dict) and "assignment" in data else data
