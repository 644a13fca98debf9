"""How a batch is run and how an output is judged: shared by every stage that runs a model."""

from raysearch.evaluation.batches import Batch, batch_size, materialise, training_batches
from raysearch.evaluation.divergence import Divergence
from raysearch.evaluation.forward import Forward, Loss, default_forward, output_tensor
from raysearch.evaluation.measure import evaluate_model
from raysearch.evaluation.microbatch import MicrobatchState, run_in_microbatches
from raysearch.evaluation.replica import Replica

__all__ = [
    "Batch",
    "Divergence",
    "Forward",
    "Loss",
    "MicrobatchState",
    "Replica",
    "batch_size",
    "default_forward",
    "evaluate_model",
    "materialise",
    "output_tensor",
    "run_in_microbatches",
    "training_batches",
]
