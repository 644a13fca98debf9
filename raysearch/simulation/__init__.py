"""A worker's fake-quantized model, with what it keeps between measurements."""

from raysearch.simulation.blocks import repeated_blocks
from raysearch.simulation.objective import Judgement, MeasuredObjective
from raysearch.simulation.simulated_model import SimulatedModel, bits_of, simulated_model
from raysearch.simulation.weight_cache import CACHE_BYTES, DeployedWeights, WeightCache

__all__ = [
    "CACHE_BYTES",
    "DeployedWeights",
    "Judgement",
    "MeasuredObjective",
    "SimulatedModel",
    "WeightCache",
    "bits_of",
    "repeated_blocks",
    "simulated_model",
]
