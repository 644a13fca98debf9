"""How a batch is run and how an output is judged: shared by every stage that runs a model."""

from raysearch.evaluation.batches import Batch, batch_size, materialise
from raysearch.evaluation.data_set import DataSet, shard_name
from raysearch.evaluation.divergence import Divergence
from raysearch.evaluation.epochs import training_batches
from raysearch.evaluation.forward import Forward, Loss, default_forward, output_tensor
from raysearch.evaluation.joint_divergence import JointDivergence, Objective
from raysearch.evaluation.measure import Evaluation, Measures, evaluate_model
from raysearch.evaluation.metric import Metric
from raysearch.evaluation.microbatch import MicrobatchState, run_in_microbatches
from raysearch.evaluation.outputs import Judged
from raysearch.evaluation.replica import Replica
from raysearch.evaluation.shard_view import ShardView
from raysearch.evaluation.worker_cache import WorkerCache

__all__ = [
    "Batch",
    "DataSet",
    "Divergence",
    "Evaluation",
    "Forward",
    "JointDivergence",
    "Judged",
    "Loss",
    "Measures",
    "Metric",
    "MicrobatchState",
    "Objective",
    "Replica",
    "ShardView",
    "WorkerCache",
    "batch_size",
    "default_forward",
    "evaluate_model",
    "materialise",
    "output_tensor",
    "run_in_microbatches",
    "shard_name",
    "training_batches",
]
