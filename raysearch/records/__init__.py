"""Frozen values that cross a stage or a process, and their Arrow and JSON forms."""

from raysearch.records.assignment import BitAssignment
from raysearch.records.costs.budget import (
    Budget,
    check_achievable,
    excesses,
    is_feasible,
    limiting_groups,
    parse_budget,
    parse_budgets,
)
from raysearch.records.costs.compression_ratio import compression_ratio
from raysearch.records.costs.file_size import FileSize, packed_bytes
from raysearch.records.costs.formula import CostFormula, CostSum
from raysearch.records.costs.kinds import COST_KINDS, CostKind
from raysearch.records.costs.memory import live_sets, tensor_bytes
from raysearch.records.costs.model import CostModel
from raysearch.records.coverage import Coverage, FloatWeight
from raysearch.records.drop import LeastCost, MaxDrop, drop_of, parse_max_drop
from raysearch.records.finalists import Finalist, Finalists, chosen_trial
from raysearch.records.granularity import PER_TENSOR, Granularity, GranularityKind
from raysearch.records.latency import LatencyProfile
from raysearch.records.network import NetworkNode
from raysearch.records.point import FLOAT_BITS, QuantizationPoint, QuantizerSpec, Row, Site
from raysearch.records.ranges import CodeArray, QuantizerRange, RangeTable
from raysearch.records.refinement import Candidate, Refinement
from raysearch.records.results import (
    EpochMetrics,
    ExportedFile,
    ExportManifest,
    FineTuneResult,
    LayerFlips,
    TargetCheck,
)
from raysearch.records.reused import Reused
from raysearch.records.rounding import RoundedWeight, RoundingTable
from raysearch.records.run import TERMINAL_STATES, RunResult, RunStatus
from raysearch.records.scheme import Scheme
from raysearch.records.search import SearchResult, SearchTrial, TrialState
from raysearch.records.sensitivity import Option, OptionEffect, SensitivityTable, Trace
from raysearch.records.setup import LiveTensor, QuantizerGroup, QuantizerSetup, StoredTensor
from raysearch.records.training_status import TrainingStatus
from raysearch.records.trial_tables import trials_from_table, trials_to_table

__all__ = [
    "COST_KINDS",
    "FLOAT_BITS",
    "PER_TENSOR",
    "TERMINAL_STATES",
    "BitAssignment",
    "Budget",
    "Candidate",
    "CodeArray",
    "CostFormula",
    "CostKind",
    "CostModel",
    "CostSum",
    "Coverage",
    "EpochMetrics",
    "ExportManifest",
    "ExportedFile",
    "FileSize",
    "Finalist",
    "Finalists",
    "FineTuneResult",
    "FloatWeight",
    "Granularity",
    "GranularityKind",
    "LatencyProfile",
    "LayerFlips",
    "LeastCost",
    "LiveTensor",
    "MaxDrop",
    "NetworkNode",
    "Option",
    "OptionEffect",
    "QuantizationPoint",
    "QuantizerGroup",
    "QuantizerRange",
    "QuantizerSetup",
    "QuantizerSpec",
    "RangeTable",
    "Refinement",
    "Reused",
    "RoundedWeight",
    "RoundingTable",
    "Row",
    "RunResult",
    "RunStatus",
    "Scheme",
    "SearchResult",
    "SearchTrial",
    "SensitivityTable",
    "Site",
    "StoredTensor",
    "TargetCheck",
    "Trace",
    "TrainingStatus",
    "TrialState",
    "check_achievable",
    "chosen_trial",
    "compression_ratio",
    "drop_of",
    "excesses",
    "is_feasible",
    "limiting_groups",
    "live_sets",
    "packed_bytes",
    "parse_budget",
    "parse_budgets",
    "parse_max_drop",
    "tensor_bytes",
    "trials_from_table",
    "trials_to_table",
]
