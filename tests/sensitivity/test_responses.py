"""Responses, perturbations and measured trials against direct computation."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.config import SensitivityConfig
from raysearch.controller import create_controller
from raysearch.errors import ConfigError
from raysearch.evaluation import DataSet
from raysearch.records import BitAssignment
from raysearch.records.low_rank import LowRank
from raysearch.search import Race
from raysearch.sensitivity import responses
from raysearch.sensitivity.perturbation import measure_perturbations
from raysearch.sensitivity.responses import Method, measure_responses, respond
from raysearch.simulation import Judgement, MeasuredObjective
from tests.support.dense_matrices import output_hessian
from tests.support.small_replicas import make_ranges, make_replica, make_setup


@pytest.fixture(params=[("conv", "kl"), ("conv", "mse"), ("attention", "kl"), ("tied", "kl")], ids="-".join)
def case(request):
    name, kind = request.param
    replica = make_replica(name, kind=kind)
    setup = make_setup(name, replica, weight_bit_widths=(2, 4, 8), activation_bit_widths=(3, 8))
    return replica, setup, make_ranges(setup, replica)


def quantized(replica, setup, ranges, bits):
    return create_controller(copy.deepcopy(replica.model), setup, ranges, BitAssignment(bits)).model


def outputs(replica, model):
    with torch.no_grad():
        return torch.cat([model(batch[0]) for batch in replica.shards["calibration"]]).double()


def mean_divergence(replica, model):
    z, reference = outputs(replica, model), outputs(replica, replica.model)
    return float(replica.divergence.per_sample(z, reference).mean())


def test_gram_is_the_brute_force_form(case):
    replica, setup, ranges = case
    got = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=4))
    reference = outputs(replica, replica.model)
    curvature = output_hessian(replica, reference)
    models = [quantized(replica, setup, ranges, {group: bits}) for group, bits in setup.options()]
    deltas = torch.stack([outputs(replica, model) for model in models]) - reference
    expected = torch.einsum("qnc,ncd,rnd->qr", deltas, curvature, deltas) / len(reference)
    assert got.gram == pytest.approx(expected.numpy(), rel=1e-6, abs=1e-9 * float(expected.max()))
    assert (got.gram == got.gram.T).all()
    assert np.linalg.eigvalsh(got.gram).min() >= -1e-12 * got.gram.max()
    assert got.divergence == pytest.approx([mean_divergence(replica, model) for model in models], rel=1e-6)


def test_of_many_options_the_rows_are_kept_as_a_factor_where_it_is_small(case, monkeypatch):
    replica, setup, ranges = case
    expected = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=4))
    monkeypatch.setattr(responses, "MOST_DENSE", 2)
    got = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=4))
    assert isinstance(got.gram, LowRank)
    product = got.gram.factor @ got.gram.factor.T
    assert product == pytest.approx(expected.gram, rel=1e-12, abs=1e-12 * expected.gram.max())
    assert (got.divergence == expected.divergence).all()
    assert got.sketch_error == expected.sketch_error
    monkeypatch.setattr(responses, "FACTOR_BYTES", 100)
    got = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=4))
    assert (got.gram == expected.gram).all()
    monkeypatch.setattr(responses, "MOST_OPTIONS", 2)
    with pytest.raises(ConfigError, match=r"more than 2 options. Lower sensitivity.sketch_size"):
        measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig())


def test_chunks_of_options_change_nothing(case):
    replica, setup, ranges = case
    one = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=1))
    all_at_once = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=99))
    assert (one.gram == all_at_once.gram).all()
    assert (one.divergence == all_at_once.divergence).all()


def test_superposition_and_the_quadratic_form_are_exact_for_a_linear_model():
    replica = make_replica("branches", kind="mse")
    setup = make_setup("branches", replica, weight_bit_widths=(2, 3), ignored_scopes=("*input*",))
    ranges = make_ranges(setup, replica)
    options = list(setup.options())
    assert len(options) == 4
    got = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=8))
    reference = outputs(replica, replica.model)
    for left in (0, 1):
        for right in (2, 3):
            chosen = [left, right]
            alone = [outputs(replica, quantized(replica, setup, ranges, dict([options[q]]))) for q in chosen]
            together = quantized(replica, setup, ranges, dict(options[q] for q in chosen))
            superposed = reference + sum(z - reference for z in alone)
            torch.testing.assert_close(outputs(replica, together), superposed, rtol=1e-5, atol=1e-5)
            predicted = 0.5 * got.gram[np.ix_(chosen, chosen)].sum()
            assert predicted == pytest.approx(mean_divergence(replica, together), rel=1e-5)
    assert 0.5 * np.diag(got.gram) == pytest.approx(got.divergence, rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "relu", "conv", "embedding", "attention"])
def test_half_k_is_the_divergence_of_a_small_perturbation(name):
    replica = make_replica(name)
    # Weights only: a calibrated activation clips outliers, which is no small perturbation.
    drop = () if name == "embedding" else ("*input*",)
    setup = make_setup(name, replica, weight_bit_widths=(8,), ignored_scopes=drop)
    ranges = make_ranges(setup, replica)
    got = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=8))
    # Third-order terms: the perturbation of the logits is about a percent of their spread.
    assert 0.5 * np.diag(got.gram) == pytest.approx(got.divergence, rel=0.05, abs=1e-12)
    assert (got.divergence > 0).all()


def test_perturbations_are_the_squared_error_of_the_deployed_weight(case):
    replica, setup, ranges = case
    got = measure_perturbations(setup, ranges, LocalPool(replica))
    assert list(got) == [(name, bits) for name in setup.of_kind("weight") for bits in (2, 4, 8)]
    for (name, bits), value in got.items():
        group = setup.group_of(name).id
        deployed = quantized(replica, setup, ranges, {group: bits})
        site = setup.points[name].sites[-1]
        changed = getattr(deployed.get_submodule(site.module), site.name).detach()
        original = replica.model.get_parameter(name).detach()
        error = (changed - original).double().square().sum()
        assert value == pytest.approx(float(error), rel=1e-6)
        # By hand, for the rows of the first channel.
        scale = ranges[name, bits].scale.reshape(-1)[0]
        row = original[0].double().numpy() / float(scale)
        low, high = {2: (-2, 1), 4: (-8, 7), 8: (-127, 127)}[bits]
        by_hand = float(scale) ** 2 * ((np.clip(np.rint(row), low, high) - row) ** 2).sum()
        first = (changed[0] - original[0]).double().square().sum()
        assert float(first) == pytest.approx(by_hand, rel=1e-3)


class Fragile(torch.nn.Module):
    """Overflows as soon as its weight is not the float one."""

    def __init__(self):
        super().__init__()
        self.fine, self.edge = torch.nn.Linear(6, 6), torch.nn.Linear(6, 4, bias=False)
        self.register_buffer("known", self.edge.weight.detach().clone())

    def forward(self, x):
        off = (self.edge.weight - self.known).abs().sum()
        return self.edge(self.fine(x)) * torch.where(off > 0, torch.full_like(off, self.fault), off + 1)


@pytest.mark.parametrize("fault", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_outputs_that_are_not_finite_give_nan_and_no_error(fault, kind):
    replica = make_replica("linear", kind=kind)
    replica.model = Fragile().eval()
    replica.model.fault = fault
    setup = make_setup("linear", replica, weight_bit_widths=(2, 8))
    ranges = make_ranges(setup, replica)
    got = measure_responses(setup, ranges, LocalPool(replica), 3, SensitivityConfig(option_chunk=2))
    bad = np.array([group == "edge.weight" for group, _ in setup.options()])
    assert not np.isfinite(got.divergence[bad]).any()
    assert np.isfinite(got.divergence[~bad]).all()
    assert not np.isfinite(got.gram[bad]).any()
    assert np.isfinite(got.gram[np.ix_(~bad, ~bad)]).all()
    measure = MeasuredObjective(setup, ranges, LocalPool(replica), Judgement(data=DataSet.CALIBRATION))
    trials = Race(measure, 3)({0: BitAssignment.extreme(setup, 0), 1: BitAssignment({"fine.weight": 8})})
    assert math.isnan(trials[0].value)
    assert trials[1].value > 0


def test_a_unit_answers_one_row_a_sample_and_option(case):
    replica, setup, ranges = case
    got = respond(replica, setup, ranges, Method(4096, 0, 2**20), 2, setup.options()[:2], "later")
    assert got["weighted"].shape == (2, 3, 4)
    assert got["divergence"].shape == (2,)
