"""What a user may set: one validated model, from TOML, the command line and keyword arguments."""

from raysearch.config.calibration import CalibrationConfig
from raysearch.config.cluster import ClusterConfig
from raysearch.config.export import ExportConfig
from raysearch.config.loading import load_config, with_defaults, with_search
from raysearch.config.objective import ObjectiveConfig
from raysearch.config.placement import OverrideConfig, PlacementConfig
from raysearch.config.search import SearchConfig
from raysearch.config.section import Section
from raysearch.config.sections import Config
from raysearch.config.sensitivity import SensitivityConfig
from raysearch.config.training import TrainingConfig
from raysearch.config.validation import ValidationConfig
from raysearch.config.writing import settings_as_text, settings_as_toml

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
    "settings_as_toml",
    "with_defaults",
    "with_search",
]
