"""Which outputs are judged and how, and the divergence of several together."""

import pytest
import torch

from raysearch.errors import ConfigError, DataError, TaskError
from raysearch.evaluation import Divergence, JointDivergence
from raysearch.evaluation.fit_divergence import Wish, fit_divergence
from raysearch.evaluation.joint_divergence import OutputPart


def values(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


BATCH = (values(4, 2), torch.tensor([0, 1, 0, 1]))


def kinds(fitted):
    assert isinstance(fitted.divergence, JointDivergence)
    return {part.name: part.divergence.kind for part in fitted.divergence.parts}


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3)])
def test_one_output_of_logits_is_judged_as_ever(shape):
    fitted = fit_divergence(values(*shape), BATCH)
    assert fitted.divergence == Divergence("kl", -1)
    assert fitted.notes == ()


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (values(4, 1), BATCH[1]),
        (values(4), BATCH[1]),
        (values(4, 3), values(4, 3)),
        (values(4, 3, 8, 8), values(4, 3, 8, 8)),
    ],
)
def test_outputs_that_are_no_logits_choose_nmse_with_a_note(outputs, targets):
    fitted = fit_divergence(outputs, (values(4, 2), targets))
    assert fitted.divergence.kind == "nmse"
    assert fitted.divergence.variance > 0
    assert str(tuple(outputs.shape)) in fitted.notes[0]


def test_soft_labels_leave_logits_logits():
    fitted = fit_divergence(values(4, 3), (values(4, 2), values(4, 3).softmax(-1)))
    assert fitted.divergence == Divergence("kl", -1)


def test_a_single_sample_has_no_variance_and_is_compared_by_mse():
    assert fit_divergence(values(1, 1), (values(1, 2),)).divergence == Divergence("mse")


@pytest.mark.parametrize("kind", ["auto", "kl", "cosine"])
def test_dense_outputs_are_asked_about_with_their_shape(kind):
    with pytest.raises(ConfigError, match=r"\(4, 3, 8, 9\).*objective\.class_dim: 1 .* 3 here.* 9\."):
        fit_divergence(values(4, 3, 8, 9), BATCH, Wish(kind))
    assert fit_divergence(values(4, 3, 8, 9), BATCH, Wish("auto", 1)).divergence == Divergence("kl", 1)
    assert fit_divergence(values(4, 3, 8, 9), BATCH, Wish("nmse")).divergence.kind == "nmse"


def test_a_kind_that_is_set_and_does_not_suit_is_refused():
    with pytest.raises(DataError, match="set it to 'nmse' or 'mse'"):
        fit_divergence(values(4, 1), BATCH, Wish("kl"))


def test_every_output_counts_by_its_kind():
    outputs = {
        "features": values(4, 6),
        "logits": values(4, 3),
        "aux_logits": values(4, 5),
        "map": values(4, 2, 3, 3),
    }
    fitted = fit_divergence(outputs, BATCH)
    assert kinds(fitted) == {"logits": "kl", "features": "nmse", "aux_logits": "kl", "map": "nmse"}
    assert [part.weight for part in fitted.divergence.parts] == [0.25] * 4
    assert "features (nmse, 0.25)" in fitted.notes[-1]


def test_outputs_without_a_row_a_sample_or_without_change_are_left_out():
    outputs = (values(4, 3), values(7, 3), torch.ones(4, 2), torch.full((4, 2), -torch.inf))
    fitted = fit_divergence(outputs, BATCH)
    assert fitted.divergence == Divergence("kl", -1)
    assert "'2' is not finite, or does not vary" in fitted.notes[0]
    assert len(fitted.notes) == 2


def test_weights_set_the_shares_and_0_leaves_out():
    outputs = (values(4, 3), values(4, 3) + 1, values(4, 7))
    fitted = fit_divergence(outputs, BATCH, Wish(weights={"0": 0.0, "2": 3.0}))
    assert [(part.name, part.weight) for part in fitted.divergence.parts] == [("1", 0.25), ("2", 0.75)]
    alone = fit_divergence(outputs, BATCH, Wish(weights={"0": 0.0, "2": 0.0})).divergence
    assert alone.judged(outputs)[0] is outputs[1]
    with pytest.raises(ConfigError, match="names 'head'; the model's outputs are 0, 1, 2"):
        fit_divergence(outputs, BATCH, Wish(weights={"head": 1.0}))
    with pytest.raises(ConfigError, match="leaves no output"):
        fit_divergence(values(4, 3), BATCH, Wish(weights={"output": 0.0}))


def test_a_joint_divergence_is_the_weighted_mean_of_its_parts_and_so_is_its_curvature():
    one, other = Divergence("kl"), Divergence("nmse", variance=0.5)
    joint = JointDivergence((OutputPart("0", one, 0.25), OutputPart("1", other, 0.75)))
    z = (values(4, 3).double(), values(4, 2, 2).double())
    near = tuple(tensor + 1e-4 * torch.randn_like(tensor) for tensor in z)
    expected = 0.25 * one.per_sample(near[0], z[0]) + 0.75 * other.per_sample(near[1], z[1])
    assert torch.equal(joint.per_sample(near, z), expected)
    delta = tuple(a - b for a, b in zip(near, z, strict=True))
    rows = joint.weighted(delta, z)
    assert rows.shape == (4, 7)
    assert torch.allclose(rows.square().sum(1) / 2, joint.per_sample(near, z), rtol=1e-3)
    assert joint.agreement(near, z) == one.agreement(near[0], z[0])


def test_an_output_that_is_missing_later_is_named():
    joint = JointDivergence((OutputPart("logits", Divergence(), 0.5), OutputPart("aux", Divergence(), 0.5)))
    with pytest.raises(TaskError, match=r"'aux' was there.*has logits.*output_weights"):
        joint.judged({"logits": values(4, 3)})
