"""Positions that do not count are judged nowhere: not in a divergence, a response, a trace or a moment."""

import numpy as np
import pytest
import torch

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import PlacementConfig, SensitivityConfig
from raysearch.errors import DataError
from raysearch.evaluation import DataSet, Divergence, JointDivergence, Measures, Replica, evaluate_model
from raysearch.evaluation.curvature.joint_factor import as_cotangent, objective_factor
from raysearch.evaluation.fit_divergence import Wish, fit_divergence
from raysearch.evaluation.joint_divergence import OutputPart
from raysearch.evaluation.outputs import difference, flat_rows
from raysearch.evaluation.positions import counted, values_of
from raysearch.evaluation.vocabulary import positions as vocabulary_positions
from raysearch.placement import place_quantizers
from raysearch.sensitivity.responses import measure_responses
from raysearch.sensitivity.traces import measure_traces
from tests.support.padded_sentences import CLASSES, LENGTHS, PerToken, apart, padded, positions, run

KINDS = [Divergence("kl"), Divergence("cosine"), Divergence("mse"), Divergence("nmse", variance=0.7)]


def outputs_of(seed, classes=CLASSES):
    """Two models' outputs on the padded batch, far from each other where there is padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(LENGTHS), max(LENGTHS), classes)
    float_outputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    outputs = float_outputs + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    outputs[~positions(padded())] = 1e3
    return outputs, float_outputs


def with_positions(divergence):
    return Divergence(divergence.kind, variance=divergence.variance, positions=positions)


def each(outputs):
    """The output of each sentence without its padding, a batch of one."""
    return [outputs[index : index + 1, :length] for index, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("divergence", KINDS, ids=lambda d: d.kind)
def test_a_sample_is_judged_as_it_is_without_its_padding(divergence):
    outputs, float_outputs = outputs_of(0)
    of_padded = with_positions(divergence)
    judged, reference = (of_padded.judged(each, padded()) for each in (outputs, float_outputs))
    alone = list(zip(each(outputs), each(float_outputs), strict=True))
    expected = torch.cat([divergence.per_sample(*pair) for pair in alone])
    assert of_padded.per_sample(judged, reference).numpy() == pytest.approx(expected.numpy(), rel=1e-12)

    rows = of_padded.weighted(difference(judged, reference), reference)
    assert rows.shape == (len(LENGTHS), max(LENGTHS) * CLASSES)
    for row, (z, ref) in zip(rows, alone, strict=True):
        own = divergence.weighted(z - ref, ref)[0]
        assert float(row @ row) == pytest.approx(float(own @ own), rel=1e-12)

    agreement = of_padded.agreement(judged, reference)
    assert (agreement is None) == (divergence.kind != "kl")
    if agreement is not None:
        assert agreement == pytest.approx(np.mean([divergence.agreement(*pair) for pair in alone]))


def columns_of(factor, outputs, divergence):
    """F of every sample, each column in the shape of the outputs."""
    columns = []
    for index in range(factor.shape[1] * factor.shape[2]):
        unit = torch.zeros(factor.shape, dtype=torch.float64)
        unit.flatten(1)[:, index] = 1
        columns.append(as_cotangent(factor.apply(unit), outputs, divergence))
    return torch.stack(columns).reshape(-1, *values_of(outputs).shape)


def test_logits_over_a_vocabulary_are_judged_without_their_padding(monkeypatch):
    monkeypatch.setattr("raysearch.evaluation.vocabulary.positions.LARGE_OUTPUT", 1)
    outputs, float_outputs = (tensor.float() for tensor in outputs_of(5))
    of_padded = with_positions(Divergence("kl"))
    judged, reference = (of_padded.judged(values, padded()) for values in (outputs, float_outputs))
    assert of_padded.is_by_position(judged, reference)
    alone = zip(each(outputs), each(float_outputs), strict=True)
    expected = torch.cat([Divergence("kl").per_sample(*pair) for pair in alone])
    assert of_padded.per_sample(judged, reference).numpy() == pytest.approx(expected.numpy(), rel=1e-6)


@pytest.mark.parametrize("classes", [CLASSES, 80])
@pytest.mark.parametrize("divergence", KINDS, ids=lambda d: d.kind)
def test_the_curvature_is_that_without_padding(divergence, classes):
    _, float_outputs = outputs_of(1, classes)
    of_padded = with_positions(divergence)
    reference = of_padded.judged(float_outputs, padded())
    factor = objective_factor(reference, of_padded)
    alone = [objective_factor(own, divergence) for own in each(float_outputs)]
    traces = [float(own.trace()) for own in alone]
    assert factor.trace().numpy() == pytest.approx(traces, rel=1e-9)

    cotangents = columns_of(factor, reference, of_padded)
    assert not cotangents[:, ~positions(padded())].any()
    for index, own in enumerate(alone):
        columns = cotangents[:, index, : LENGTHS[index]].flatten(1)
        expected = columns_of(own, each(float_outputs)[index], divergence)[:, 0].flatten(1)
        assert (columns.T @ columns).numpy() == pytest.approx((expected.T @ expected).numpy(), abs=1e-9)


def test_of_several_outputs_those_without_positions_count_whole():
    outputs, _ = outputs_of(2)
    joint = JointDivergence(
        (
            OutputPart("logits", Divergence(positions=positions), 0.5),
            OutputPart("pooled", Divergence("mse", positions=positions), 0.5),
        )
    )
    returned = {"logits": outputs, "pooled": outputs.mean((1, 2))}
    logits, pooled = joint.judged(returned, padded())
    assert torch.equal(logits.counts, positions(padded()))
    assert torch.equal(pooled, returned["pooled"])
    assert flat_rows((logits, pooled)).shape == (4, 5 * CLASSES + 1)
    assert objective_factor((logits, pooled), joint).shape[:2] == (4, 6)


def test_classes_are_no_positions_where_there_are_as_many():
    logits = torch.randn(len(LENGTHS), max(LENGTHS))
    for kind in ("kl", "cosine"):
        divergence = Divergence(kind, positions=positions)
        assert divergence.judged(logits, padded()) is logits
        joint = JointDivergence((OutputPart("logits", divergence, 1.0),))
        assert joint.judged({"logits": logits}, padded())[0] is logits
    # A number at each position.
    assert torch.equal(
        Divergence("mse", positions=positions).judged(logits, padded()).counts, positions(padded())
    )


def test_no_gradient_comes_from_padding():
    outputs, float_outputs = outputs_of(3)
    outputs.requires_grad_()
    divergence = Divergence(positions=positions)
    judged = divergence.judged(outputs, padded())
    divergence.per_sample(judged, divergence.judged(float_outputs, padded())).sum().backward()
    assert not outputs.grad[~positions(padded())].any()
    assert outputs.grad[positions(padded())].abs().min() > 0


def test_the_variance_is_that_of_what_counts():
    outputs, _ = outputs_of(4)
    fitted = fit_divergence(outputs, padded(), Wish("nmse"), positions).divergence
    # Output by output, over the sentences that are so long; the last token but one's alone has no variance.
    columns = [outputs[[n for n in range(4) if LENGTHS[n] > place], place] for place in range(4)]
    expected = torch.cat([column.var(0) for column in columns]).mean()
    assert fitted.variance == pytest.approx(float(expected), rel=1e-12)
    assert fitted.positions is positions


def replica_of(batches, is_masked):
    torch.manual_seed(0)
    model = PerToken().double()
    divergence = Divergence(positions=positions if is_masked else None)
    return Replica(model, run, {DataSet.CALIBRATION: batches}, divergence)


def measured(batches, is_masked):
    """Responses, their divergences and traces of a model on a batch, or on several."""
    replica = replica_of(batches, is_masked)
    settings = PlacementConfig(weight_bit_widths=(2, 4), activation_bit_widths=())
    setup = place_quantizers(replica.model, (apart()[0]["ids"],), settings)
    ranges = calibrate(setup, LocalPool(replica), len(batches))
    sensitivity = SensitivityConfig(estimator="ggn-exact")
    responses = measure_responses(setup, ranges, LocalPool(replica), len(batches), sensitivity)
    traces = measure_traces(setup, LocalPool(replica), len(batches), sensitivity)
    return responses.gram, responses.divergence, [trace.value for trace in traces.values()]


def test_responses_and_traces_are_those_without_padding():
    for got, expected in zip(measured([padded()], True), measured(apart(), False), strict=True):
        assert np.ravel(got) == pytest.approx(np.ravel(expected), rel=1e-9, abs=1e-15)
    assert measured([padded()], False)[1] != pytest.approx(measured(apart(), False)[1], rel=1e-3)


@pytest.mark.parametrize("size", [16, 4096])
def test_responses_of_logits_over_a_vocabulary_leave_padding_out(monkeypatch, size):
    replica = replica_of([padded()], True)
    replica.model.float()
    settings = PlacementConfig(weight_bit_widths=(2, 4), activation_bit_widths=())
    setup = place_quantizers(replica.model, (apart()[0]["ids"],), settings)
    ranges = calibrate(setup, LocalPool(replica), 1)
    sensitivity = SensitivityConfig(sketch_size=size)
    exact = measure_responses(setup, ranges, LocalPool(replica), 1, sensitivity)
    monkeypatch.setattr("raysearch.evaluation.vocabulary.positions.LARGE_OUTPUT", 1)
    # Three positions of five at a time.
    monkeypatch.setitem(vocabulary_positions._AT_ONCE, "cpu", 3 * CLASSES)
    monkeypatch.setattr("raysearch.sensitivity.rows._InDouble.judge", None)
    got = measure_responses(setup, ranges, LocalPool(replica), 1, sensitivity)
    assert got.gram == pytest.approx(exact.gram, rel=1e-5, abs=1e-7 * exact.gram.max())
    assert got.divergence == pytest.approx(exact.divergence, rel=1e-5)
    assert got.sketch_stderr == pytest.approx(exact.sketch_stderr, rel=1e-5)


def test_a_model_is_evaluated_where_it_counts():
    torch.manual_seed(0)
    model, reference = PerToken(), PerToken()
    of_padded = Measures(run, Divergence(positions=positions), reference)
    got = evaluate_model(model, [padded()], of_padded).values
    expected = evaluate_model(model, apart(), Measures(run, Divergence(), reference)).values
    assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("counts", "part"),
    [
        (lambda batch: batch["mask"], r"gives a tensor of torch.int64 with the shape \(4, 5\)"),
        (
            lambda batch: batch["mask"].bool().any(1),
            r"of torch.bool with the shape \(4,\); .*samples, positions",
        ),
        (lambda batch: None, "gives a NoneType"),
        (lambda batch: batch["ids"] < batch["mask"] - 1, "sample 0 of a batch has no position that counts"),
    ],
)
def test_what_are_no_positions_is_refused(counts, part):
    with pytest.raises(DataError, match=part):
        counted(padded(), counts)
