"""Logits over a vocabulary in float32 against the definition in float64."""

import pytest
import torch

from raysearch.evaluation import Divergence
from raysearch.evaluation.vocabulary import positions
from raysearch.evaluation.vocabulary.positions import judged_positions, position_divergences, roots

SHAPE = (2, 3, 7000)


def logits(size: float, shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    reference = 4 * torch.randn(shape, generator=generator)
    return reference + size * torch.randn(shape, generator=generator), reference


def in_double(outputs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return Divergence().per_sample(outputs.double(), reference.double())


@pytest.mark.parametrize(("size", "tolerance"), [(1e-3, 1e-4), (1e-2, 1e-5), (1.0, 1e-5), (20.0, 1e-5)])
def test_float32_gives_what_float64_gives(size: float, tolerance: float) -> None:
    z, reference = logits(size)
    assert Divergence().is_by_position(z, reference)
    got = Divergence().per_sample(z, reference)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, in_double(z, reference), rtol=tolerance, atol=0)
    assert torch.equal(Divergence().per_sample(reference, reference), torch.zeros(2).double())


def test_a_shift_of_all_logits_of_a_position_counts_for_nothing() -> None:
    z, reference = logits(0.1)
    far = Divergence().per_sample(z + 64, reference)
    torch.testing.assert_close(far, in_double(z + 64, reference), rtol=1e-5, atol=0)


def test_outputs_that_are_far_off_and_half_precision_are_judged_too() -> None:
    z, reference = logits(1.0)
    z[0, 1, 5] = 3e4
    torch.testing.assert_close(Divergence().per_sample(z, reference), in_double(z, reference))
    z[1, 0, 0] = torch.nan
    assert Divergence().per_sample(z, reference).isnan().tolist() == [False, True]
    half, half_reference = (part.bfloat16() for part in logits(0.5))
    got = Divergence().per_sample(half, half_reference)
    torch.testing.assert_close(got, in_double(half, half_reference), rtol=1e-5, atol=0)


def test_rows_are_those_of_the_quadratic_form_with_the_signs_of_their_roots() -> None:
    z, reference = (part.flatten(0, 1) for part in logits(0.3))
    signed = roots(reference) * (1 - 2 * (torch.arange(7000) % 2))
    rows = torch.cat([part.rows.clone() for part in judged_positions(z, reference, lambda a, b: signed[a:b])])
    expected = Divergence().weighted((z - reference)[None].double(), reference[None].double())
    expected = expected.reshape(rows.shape) * 6**0.5 * (1 - 2 * (torch.arange(7000) % 2))
    torch.testing.assert_close(rows.double(), expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_how_many_positions_are_judged_at_once_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    z, reference = logits(0.3, (3, 5, 4001))
    every = position_divergences(z, reference)
    monkeypatch.setitem(positions._AT_ONCE, "cpu", 1)
    assert torch.equal(position_divergences(z, reference), every)
    assert torch.equal(position_divergences(z[1:2], reference[1:2]), every[1:2])


def test_with_a_gradient_double_precision_is_kept() -> None:
    z, reference = logits(0.3)
    z.requires_grad_()
    assert not Divergence().is_by_position(z, reference)
    (slope,) = torch.autograd.grad(Divergence().per_sample(z, reference).sum(), z)
    assert bool(slope.any())
    with torch.no_grad():
        assert Divergence().is_by_position(z, reference)


def test_small_outputs_and_classes_in_front_are_judged_as_before() -> None:
    small, _ = logits(1.0, (2, 3, 500))
    assert not Divergence().is_by_position(small, small)
    maps, _ = logits(1.0, (2, 30, 40, 40))
    assert not Divergence("kl", 1).is_by_position(maps, maps)
    assert not Divergence("mse").is_by_position(maps, maps)
