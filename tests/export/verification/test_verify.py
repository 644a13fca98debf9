from dataclasses import replace

import pytest
import torch
from torch import nn

from raysearch.errors import ExportError
from raysearch.evaluation import default_forward
from raysearch.export.verification.verify import (
    check_close,
    check_equal,
    check_flips,
    compare,
    reference_outputs,
    within_tolerance,
)
from raysearch.records import LayerFlips


class Shifted(nn.Module):
    """Outputs of 10 classes over a range of 9, shifted by a little."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


@pytest.fixture
def references():
    batches = [torch.arange(10.0).repeat(4, 1), torch.arange(10.0).flip(0).repeat(2, 1)]
    return reference_outputs(nn.Identity(), batches, default_forward)


def check(references, by):
    return compare("onnx", "some runtime", Shifted(by), references, default_forward)


def test_the_figures_of_a_check(references):
    found = check(references, torch.tensor([1.0] + [0.0] * 9))
    assert (found.max_abs_difference, found.mean_abs_difference) == (1.0, pytest.approx(0.1))
    assert (found.agreement, found.num_samples) == (1.0, 6)


def test_agreement_is_the_share_of_rows_with_the_same_argmax(references):
    assert check(references, torch.tensor([9.5] + [0.0] * 9)).agreement == pytest.approx(2 / 6)


def test_equality_is_bit_for_bit_and_nan_equals_nan(references):
    check_equal(check(references, 0.0))
    with pytest.raises(
        ExportError, match=r"'onnx' differs from the stripped module in some runtime by up to"
    ):
        check_equal(check(references, 1e-6))
    bad = reference_outputs(nn.Identity(), [torch.full((2, 3), torch.nan)], default_forward)
    check_equal(check(bad, 0.0))


def test_a_nan_on_one_side_is_beyond_any_tolerance(references):
    found = check(references, float("nan"))
    assert found.max_abs_difference == float("inf")
    assert not within_tolerance(found, references)


def test_small_differences_pass_and_large_ones_only_with_agreement(references):
    check_close(check(references, 0.08), references)
    check_close(check(references, 0.4), references)
    swapped = torch.tensor([9.5] + [0.0] * 9) * 0.4
    assert within_tolerance(check(references, swapped), references)
    with pytest.raises(ExportError, match=r"mean 0\.5, max 0\.5, outputs range over 9, agreement 1\.0000"):
        check_close(check(references, 0.5), references)


def test_a_single_output_has_no_agreement_to_rely_on():
    references = reference_outputs(nn.Identity(), [torch.linspace(0, 9, 10)[:, None]], default_forward)
    found = check(references, 0.2)
    assert found.agreement == 1.0
    assert not within_tolerance(found, references)


def test_other_shapes_and_failures_are_export_errors(references):
    with pytest.raises(ExportError, match=r"gives outputs of shape \[\[1, 40\]\]"):
        compare("onnx", "r", Flat(), references, default_forward)
    with pytest.raises(ExportError, match="cannot run a verification batch in r"):
        compare("onnx", "r", nn.Linear(3, 3), references, default_forward)


class Flat(nn.Module):
    def forward(self, x):
        return x.reshape(1, -1)


def test_there_must_be_a_batch():
    with pytest.raises(ExportError, match="no batch to verify"):
        reference_outputs(nn.Identity(), [], default_forward)


def test_flips_of_single_steps_are_noted_and_longer_ones_refused(references):
    def with_layers(*layers):
        return replace(check(references, 0.0), layers=layers)

    good, tie = LayerFlips("a.input", 2, 1000, 5), LayerFlips("b.input", 40, 1000, 1)
    assert check_flips(with_layers()) == check_flips(with_layers(good)) == ""
    assert "'b.input': 40 of 1000 codes differ" in check_flips(with_layers(good, tie))
    wrong = LayerFlips("c.input", 3, 1000, 2)
    with pytest.raises(ExportError, match=r"'c\.input': 3 of 1000 .* by up to 2 steps; allowed is 0\.2%"):
        check_flips(with_layers(tie, wrong))
