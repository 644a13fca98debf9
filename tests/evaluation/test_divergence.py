import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from raysearch.errors import DataError
from raysearch.evaluation import Divergence
from raysearch.evaluation.divergence import check_outputs

CASES = {
    "kl": (Divergence("kl"), (4, 5)),
    "kl sequence": (Divergence("kl"), (3, 2, 4)),
    "kl dense map": (Divergence("kl", class_dim=1), (2, 3, 2, 2)),
    "mse": (Divergence("mse"), (3, 4)),
    "mse map": (Divergence("mse"), (2, 3, 2)),
    "nmse": (Divergence("nmse", variance=2.5), (3, 4)),
    "cosine": (Divergence("cosine"), (4, 5)),
    "cosine map": (Divergence("cosine", class_dim=1), (2, 3, 2, 2)),
}


def outputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    reference = torch.randn(shape)
    return reference + 0.3 * torch.randn(shape), reference


def dense(divergence: Divergence, z: Tensor, reference: Tensor) -> Tensor:
    """One sample at a time, one position at a time, from the definition."""
    values = []
    for a, b in zip(z.double(), reference.double(), strict=True):
        if divergence.kind == "mse":
            values.append(((a - b) ** 2).mean() / 2)
            continue
        if divergence.kind == "nmse":
            values.append(((a - b) ** 2).mean() / 5)
            continue
        dim = divergence.class_dim - 1 if divergence.class_dim > 0 else a.ndim - 1
        rows_a, rows_b = (t.movedim(dim, -1).reshape(-1, t.shape[dim]) for t in (a, b))
        if divergence.kind == "cosine":
            values.append((1 - torch.cosine_similarity(rows_a, rows_b, dim=1)).mean())
            continue
        p, q = rows_b.exp() / rows_b.exp().sum(1, True), rows_a.exp() / rows_a.exp().sum(1, True)
        values.append((p * (p / q).log()).sum(1).mean())
    return torch.stack(values)


@pytest.mark.parametrize("case", CASES)
def test_per_sample_is_the_definition(case: str) -> None:
    divergence, shape = CASES[case]
    z, reference = outputs(shape)
    got = divergence.per_sample(z, reference)
    assert got.shape == (shape[0],)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, dense(divergence, z, reference))
    assert torch.equal(divergence.per_sample(reference, reference), torch.zeros(shape[0]).double())


@pytest.mark.parametrize("case", CASES)
def test_inner_products_of_weighted_rows_are_those_of_the_dense_hessian(case: str) -> None:
    divergence, shape = CASES[case]
    _, reference = outputs(shape)
    first, second = torch.randn(shape), torch.randn(shape)
    rows = [divergence.weighted(delta, reference) for delta in (first, second)]
    assert rows[0].dtype == torch.float64
    for i in range(shape[0]):
        one = reference[i : i + 1].double()
        curvature = hessian(lambda z, one=one: divergence.per_sample(z, one).sum(), one)
        curvature = curvature.reshape(one.numel(), one.numel())
        for a, b, row_a, row_b in (
            (first, second, rows[0], rows[1]),
            (first, first, rows[0], rows[0]),
        ):
            expected = a[i].double().reshape(-1) @ curvature @ b[i].double().reshape(-1)
            torch.testing.assert_close(row_a[i] @ row_b[i], expected)


@pytest.mark.parametrize("case", CASES)
def test_half_the_squared_row_is_the_divergence_to_second_order(case: str) -> None:
    divergence, shape = CASES[case]
    _, reference = outputs(shape)
    delta = 1e-3 * torch.randn(shape).double()
    rows = divergence.weighted(delta, reference)
    expected = divergence.per_sample(reference.double() + delta, reference.double())
    torch.testing.assert_close(rows.square().sum(1) / 2, expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_it_is_differentiable_in_the_outputs(case: str) -> None:
    divergence, shape = CASES[case]
    z, reference = outputs(shape)
    (slope,) = torch.autograd.grad(divergence.per_sample(z.requires_grad_(), reference).sum(), z)
    assert bool(slope.any())
    assert slope.dtype == torch.float32


def test_large_logits_stay_finite() -> None:
    z, reference = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[1e4, 0.0, -1e4]])
    assert bool(torch.isfinite(Divergence().per_sample(z, reference)).all())


def test_agreement_counts_positions_with_one_argmax() -> None:
    reference = torch.eye(4)
    z = reference.clone()
    z[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    assert Divergence().agreement(z, reference) == 0.75
    dense_map = torch.zeros(1, 2, 1, 2)
    dense_map[0, 1] = 1.0
    other = dense_map.clone()
    other[0, :, 0, 0] = torch.tensor([1.0, 0.0])
    assert Divergence("kl", 1).agreement(other, dense_map) == 0.5
    for kind in ("mse", "nmse", "cosine"):
        assert Divergence(kind).agreement(z, reference) is None


def test_nmse_is_fitted_to_the_variance_over_samples() -> None:
    outputs_of_data = torch.tensor([[0.0, 10.0], [2.0, 10.0], [4.0, 16.0]])
    fitted = Divergence("nmse").fitted(outputs_of_data)
    assert fitted.variance == pytest.approx((4 + 12) / 2)
    value = fitted.per_sample(outputs_of_data + 2, outputs_of_data)
    torch.testing.assert_close(value, torch.full((3,), 0.5 * 4 / 8).double())
    # One sample of a batch counts what it counts in the whole.
    torch.testing.assert_close(fitted.per_sample(outputs_of_data[:1] + 2, outputs_of_data[:1]), value[:1])
    assert Divergence("kl").fitted(outputs_of_data) == Divergence("kl")


@pytest.mark.parametrize("data", [torch.ones(3, 2), torch.randn(1, 2), torch.full((2, 2), float("inf"))])
def test_nmse_without_a_variance_is_refused(data: Tensor) -> None:
    with pytest.raises(DataError, match="two samples or more"):
        Divergence("nmse").fitted(data)
    with pytest.raises(DataError, match="fitted"):
        Divergence("nmse").per_sample(data, data)


def test_a_vector_without_direction_does_not_suit_cosine() -> None:
    assert "length 0" in check_outputs(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), Divergence("cosine"))
    assert check_outputs(torch.eye(2), Divergence("cosine")) == ""
    assert "counts samples" in check_outputs(torch.eye(2), Divergence("cosine", 0))


@pytest.mark.parametrize(
    ("shape", "class_dim", "problem"),
    [
        ((4,), -1, "no class dimension"),
        ((4, 3), 2, "no class dimension 2"),
        ((4, 3), -3, "no class dimension -3"),
        ((4, 1), -1, "one class"),
        ((4, 3, 5), 0, "counts samples"),
        ((4, 3), -2, "counts samples"),
        ((4, 3), -1, ""),
        ((4, 3, 5, 5), 1, ""),
    ],
)
def test_outputs_without_classes_do_not_suit_kl(shape: tuple[int, ...], class_dim: int, problem: str) -> None:
    found = check_outputs(torch.zeros(shape), Divergence("kl", class_dim))
    assert problem in found
    assert bool(found) == bool(problem)
    assert check_outputs(torch.zeros(shape), Divergence("mse", class_dim)) == ""


def test_nan_does_not_suit_kl() -> None:
    assert "NaN" in check_outputs(torch.full((2, 3), float("nan")), Divergence())
