"""What a user may set: one validated model, from TOML, the command line and keyword arguments."""

from raysearch.config.loading import load_config, with_search
from raysearch.config.sections import (
    CalibrationConfig,
    ClusterConfig,
    Config,
    ExportConfig,
    ObjectiveConfig,
    OverrideConfig,
    PlacementConfig,
    SearchConfig,
    Section,
    SensitivityConfig,
    TrainingConfig,
    ValidationConfig,
)
from raysearch.config.writing import settings_as_text

__all__ = [
    "CalibrationConfig",
    "ClusterConfig",
    "Config",
    "ExportConfig",
    "ObjectiveConfig",
    "OverrideConfig",
    "PlacementConfig",
    "SearchConfig",
    "Section",
    "SensitivityConfig",
    "TrainingConfig",
    "ValidationConfig",
    "load_config",
    "settings_as_text",
    "with_search",
]
