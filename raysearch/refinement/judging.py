"""How far a candidate's outputs are from the float model's, on validation data."""

from __future__ import annotations

import torch
from torch import nn

from raysearch.cluster.pool import UnitValue
from raysearch.controller import create_controller
from raysearch.evaluation import DataSet, Replica, shard_name
from raysearch.evaluation.model.copies import reading_copy
from raysearch.hooks import put_floats
from raysearch.records.refinement import Candidate
from raysearch.records.winner import Winner
from raysearch.refinement.tuning import Work


def judge(replica: Replica, work: Work, candidate: Candidate, index: int) -> UnitValue:
    """Unit: the divergence of every sample of one shard of the search's validation data.

    The model is made as for deployment, by `create_controller`, so what is measured is what strip gives.

    Args:
        replica: holds the float model and the shards.
        work: what is refined.
        candidate: what is judged.
        index: of the shard.
    """
    model = make_model(replica.model, work.winner, candidate)
    outputs = replica.run(model, replica.shard(DataSet.SEARCH, index), shard_name(DataSet.SEARCH, index))
    values = replica.divergence.per_sample(outputs, replica.float_outputs(DataSet.SEARCH, index))
    return {"values": values.detach().cpu().numpy()}


def make_model(model: nn.Module, winner: Winner, candidate: Candidate) -> nn.Module:
    """A copy of the float model, quantized as the candidate says."""
    # Latent weights are written over the float ones.
    own = winner.setup.of_kind("weight").keys() | candidate.floats.keys()
    quantized = reading_copy(model, own)
    put_floats(quantized, candidate.floats)
    with torch.no_grad():
        create_controller(quantized, winner.setup, candidate.put_into(winner.ranges), winner.assignment)
    return quantized.eval()
