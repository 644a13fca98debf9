"""Put quantizers into a model, hold them, and strip them off again."""

from raysearch.controller.adjacent import AdjacentGroups
from raysearch.controller.by_hand import NonWeightQuantizer, WeightQuantizer
from raysearch.controller.controller import Observer, QuantizationController
from raysearch.controller.create import create_controller
from raysearch.controller.initializer import Initializer, RangeReport
from raysearch.controller.losses import DistillationLoss, ZeroLoss
from raysearch.controller.precision import PRECISION_KEYS
from raysearch.controller.quantizer_set import CompressionStage, QuantizerSet
from raysearch.controller.readiness import ExportReadiness
from raysearch.controller.scheduler import ScheduleParams, Scheduler, StagedScheduler
from raysearch.controller.state import ControllerState
from raysearch.controller.statistics import Statistics
from raysearch.controller.stripped import StrippedWeight, stripped_quantizers, stripped_weights

__all__ = [
    "PRECISION_KEYS",
    "AdjacentGroups",
    "CompressionStage",
    "ControllerState",
    "DistillationLoss",
    "ExportReadiness",
    "Initializer",
    "NonWeightQuantizer",
    "Observer",
    "QuantizationController",
    "QuantizerSet",
    "RangeReport",
    "ScheduleParams",
    "Scheduler",
    "StagedScheduler",
    "Statistics",
    "StrippedWeight",
    "WeightQuantizer",
    "ZeroLoss",
    "create_controller",
    "stripped_quantizers",
    "stripped_weights",
]
