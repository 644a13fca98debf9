"""Files from a stripped module, one target a file, each verified in its own runtime; and back."""

from raysearch.export.check_folder import FolderCheck, verify_folder
from raysearch.export.export import export_model
from raysearch.export.load import load_model
from raysearch.export.stripped_model import StrippedModel
from raysearch.export.targets import TARGETS, Target, check_model, check_targets
from raysearch.export.timing.profiling import profile_onnxruntime

__all__ = [
    "TARGETS",
    "FolderCheck",
    "StrippedModel",
    "Target",
    "check_model",
    "check_targets",
    "export_model",
    "load_model",
    "profile_onnxruntime",
    "verify_folder",
]
