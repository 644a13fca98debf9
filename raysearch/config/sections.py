"""All sections of the settings together."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raysearch.config.calibration import CalibrationConfig
from raysearch.config.cluster import ClusterConfig
from raysearch.config.export import ExportConfig
from raysearch.config.objective import ObjectiveConfig
from raysearch.config.placement import PlacementConfig
from raysearch.config.rounding import RoundingConfig
from raysearch.config.search import SearchConfig
from raysearch.config.section import Section
from raysearch.config.sensitivity import SensitivityConfig
from raysearch.config.training import TrainingConfig
from raysearch.config.validation import ValidationConfig


class Config(Section):
    """All settings of a run."""

    seed: int = Field(0, ge=0)
    placement: PlacementConfig = PlacementConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    rounding: RoundingConfig = RoundingConfig()
    sensitivity: SensitivityConfig = SensitivityConfig()
    search: SearchConfig = SearchConfig()
    training: TrainingConfig = TrainingConfig()
    export: ExportConfig = ExportConfig()
    validation: ValidationConfig = ValidationConfig()
    cluster: ClusterConfig = ClusterConfig()

    def settled(self, has_gpus: bool) -> Config:
        """With the device in force in place of what follows from the machines.

        Args:
            has_gpus: whether there is a GPU where the workers will be.
        """
        cluster = self.cluster.settled(has_gpus)
        training = self.training
        if training.use_gpu is None:
            training = training.model_copy(update={"use_gpu": cluster.device == "cuda"})
        return self.model_copy(update={"cluster": cluster, "training": training})

    def fixed(self) -> dict[str, Any]:
        """The settings that a resumed run must share: all but where and on how many workers it runs."""
        data, defaults = self.model_dump(mode="json"), Config().model_dump(mode="json")
        # Nearest rounding has no settings; and runs from before there was a choice, whose records lack the
        # section, rounded to nearest.
        if self.rounding.method == "nearest":
            del data["rounding"]
        # Runs of before there were any lack it.
        if not self.objective.output_weights:
            del data["objective"]["output_weights"]
        if self.validation.baselines:
            del data["validation"]["baselines"]
        # Where there are widths alone, as in runs from before there were schemes.
        if not self.placement.weight_schemes:
            del data["placement"]["weight_schemes"]
        for section, name in LATER:
            if data[section][name] == defaults[section][name]:
                del data[section][name]
        # The trials go there too, and no record may hold its password.
        del data["search"]["storage"]
        data["training"] = self.training.fixed()
        data["cluster"] = {key: data["cluster"][key] for key in ("threads", "device", "deterministic")}
        return data


LATER = (
    ("placement", "scale_dtype"),
    ("sensitivity", "response_shards"),
    ("sensitivity", "response_samples"),
    ("search", "finalists_trained"),
    ("search", "finalists_epochs"),
    ("search", "finalists_steps"),
)
"""Settings that runs from before they existed lack; a run that is at their defaults goes on."""
