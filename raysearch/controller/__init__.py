"""Put quantizers into a model, hold them, and strip them off again."""

from raysearch.controller.by_hand import AdjacentGroups, NonWeightQuantizer, Stages, WeightQuantizer
from raysearch.controller.controller import QuantizationController, RangeReport
from raysearch.controller.create import create_controller
from raysearch.controller.losses import DistillationLoss, ZeroLoss
from raysearch.controller.precision import PRECISION_KEYS
from raysearch.controller.quantizer_set import CompressionStage, HeldQuantizers, Observer
from raysearch.controller.readiness import ExportReadiness
from raysearch.controller.scheduler import ScheduleParams, Scheduler, StagedScheduler
from raysearch.controller.state import check_state, ranges_in
from raysearch.controller.statistics import Statistics
from raysearch.controller.stripped import StrippedWeight, stripped_quantizers, stripped_weights
from raysearch.unknown_keys import nearest, refuse_unknown

__all__ = [
    "PRECISION_KEYS",
    "AdjacentGroups",
    "CompressionStage",
    "DistillationLoss",
    "ExportReadiness",
    "HeldQuantizers",
    "NonWeightQuantizer",
    "Observer",
    "QuantizationController",
    "RangeReport",
    "ScheduleParams",
    "Scheduler",
    "StagedScheduler",
    "Stages",
    "Statistics",
    "StrippedWeight",
    "WeightQuantizer",
    "ZeroLoss",
    "check_state",
    "create_controller",
    "nearest",
    "ranges_in",
    "refuse_unknown",
    "stripped_quantizers",
    "stripped_weights",
]
