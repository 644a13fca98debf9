"""The formats that a stripped model is written in: one a file, of one protocol, listed once."""

from raysearch.export.targets.capability import Capability
from raysearch.export.targets.registry import TARGETS, check_model, check_targets
from raysearch.export.targets.target import ExportJob, Target, Verdict, Verification, Written

__all__ = [
    "TARGETS",
    "Capability",
    "ExportJob",
    "Target",
    "Verdict",
    "Verification",
    "Written",
    "check_model",
    "check_targets",
]
