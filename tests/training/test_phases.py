"""What acts, learns and is drawn to its levels at which share of a training."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from raysearch.artifacts import Storage
from raysearch.calibration import adapt_batch_norm
from raysearch.errors import ConfigError, TrainingError
from raysearch.quantizer.quantizer import MinimumQuantizer
from raysearch.records import QuantizerRange
from raysearch.training.context import ProcessContext
from raysearch.training.feed import Draws, drawn
from raysearch.training.loop import Training
from raysearch.training.norms import alone, synchronise
from raysearch.training.objective import Objective
from raysearch.training.phases import Phases, TrainedWeight
from raysearch.training.progress import CheckpointFolder
from raysearch.training.state import state_bytes
from tests.support.training_recipes import Plain, Toy, blobs, cross_entropy, make_recipe, trained


class Watching(ProcessContext):
    """Writes down, after every step and validation, what `watch` gives of the model."""

    def __init__(self, watch, **options):
        super().__init__(**options)
        self.watch = watch
        self.seen = []
        self.training = None

    def tell(self, status):
        if self.training is not None:
            self.seen.append((status.step, status.loss is not None, self.watch(self.training)))


def watched(recipe, watch):
    context = Watching(watch)
    context.training = Training(recipe, context)
    context.training.run()
    return context.seen


def scales(training):
    parameters = dict(training.model.named_parameters())
    return torch.cat([value.detach().flatten() for name, value in parameters.items() if "scale" in name])


def test_scales_stay_from_the_share_on_at_which_they_freeze():
    recipe = make_recipe(kind=Plain, epochs=2, scale_freeze_after=0.5)
    after = {step: value for step, is_step, value in watched(recipe, scales) if is_step}
    # Twelve steps.
    moved = [not torch.equal(after[step], after[step + 1]) for step in range(1, 12)]
    assert moved == [True] * 5 + [False] * 6


def test_weights_that_diverge_behind_the_last_step_are_a_failure_of_training():
    def poison(training):
        if training.progress.step == 6:
            torch.nn.init.constant_(training.model.first.bias, math.inf)

    recipe = make_recipe(kind=Toy, epochs=1, batch_norm_samples=64)
    with pytest.raises(TrainingError, match=r"after step 6: .*NaN or infinite.*Train with a lower"):
        watched(recipe, poison)


def activations(training):
    return [
        module.enabled for module in training.model.modules() if getattr(module, "kind", "") == "activation"
    ]


def test_activations_act_late_in_steps_and_always_in_validations():
    recipe = make_recipe(kind=Plain, epochs=2, activations_after=0.5, batch_size=64)
    before = {step: value for step, is_step, value in watched(recipe, activations) if is_step}
    assert [all(before[step]) for step in range(1, 7)] == [False] * 3 + [True] * 3
    assert not any(before[1])
    late = recipe.settings.model_copy(update={"epochs": 1, "activations_after": 0.9})
    training = trained(dataclasses.replace(recipe, settings=late))
    assert not any(activations(training))
    with training._phases.whole(), torch.no_grad():
        batch = recipe.validation[0]
        loss = float(cross_entropy(training.model.eval()(batch[0]), batch))
    assert training.progress.history[-1].metrics["loss"] == loss


def test_a_staged_training_goes_on_bit_for_bit(tmp_path):
    settings = {"epochs": 2, "checkpoint_steps": 2, "activations_after": 0.7, "scale_freeze_after": 0.8}

    def folder():
        return CheckpointFolder(Storage(tmp_path))

    class Stopping(ProcessContext):
        def tell(self, status):
            if status.step == 9 and status.loss is not None:
                raise KeyboardInterrupt

    expected = trained(make_recipe(**settings))
    with pytest.raises(KeyboardInterrupt):
        trained(make_recipe(**settings), Stopping(folder=folder()))
    resumed = trained(make_recipe(**settings), ProcessContext(folder=folder()))
    assert state_bytes(resumed.model) == state_bytes(expected.model)


def test_dampening_draws_to_the_level_that_a_weight_has_and_never_past_it():
    recipe = make_recipe(bits=3, dampening=0.5)
    controller = recipe.build()
    phases = Phases(controller, recipe.settings)
    quantizer = controller.all_quantizations["head.weight"]
    weight = controller.model.head.parametrizations.weight.original
    before, levels = weight.detach().clone(), quantizer(weight).detach()
    step = quantizer.effective_scale().detach()
    phases.dampen(share=0.0, rate=0.01)
    assert torch.equal(weight, before)
    phases.dampen(share=0.5, rate=0.01)
    # λ is half of the setting there; beyond the ends nothing is drawn.
    inside = ((before - levels).abs() <= step / 2) & (before.abs() < 3 * step)
    expected = before + (levels - before) * (2 * 0.25 * 0.01 / step)
    torch.testing.assert_close(weight[inside], expected[inside])
    beyond = before > 3.01 * step
    assert beyond.any()
    assert torch.equal(weight[beyond], before[beyond])
    phases.dampen(share=1.0, rate=1e6)
    torch.testing.assert_close(weight[inside], levels[inside])
    assert torch.equal(quantizer(weight), levels)


def test_dampening_draws_a_weight_with_minima_to_its_levels():
    recipe = make_recipe(dampening=0.5)
    phases = Phases(recipe.build(), recipe.settings)
    quantizer = MinimumQuantizer((4,))
    # Levels -1, -0.75, … 2.75.
    scale, minimum = np.array([0.25], np.float32), np.array([1], np.float32)
    quantizer.set_range(4, QuantizerRange(scale, np.zeros(1, np.int32), False, minimum=minimum))
    weight = torch.tensor([-3.0, -0.7, 2.3, 3.0])
    phases._dampened = [TrainedWeight("weight", weight, quantizer)]
    phases.dampen(share=1.0, rate=1e6)
    # Beyond the ends nothing is drawn.
    torch.testing.assert_close(weight, torch.tensor([-3.0, -0.75, 2.25, 3.0]))


def test_norms_take_the_statistics_of_the_weights_as_they_are_then():
    recipe = make_recipe(epochs=1, batch_norm_samples=64, learning_rate=0.01, ema_decay=0.5)
    plain = make_recipe(epochs=1, learning_rate=0.01, ema_decay=0.5)
    training, other = trained(recipe), trained(plain)
    norm = training.model.norm
    # Two batches of the first epoch, with the averaged parameters, whose mean is that of what they give.
    turns = drawn(training._batches(0), Draws(recipe.seed, 0, 0))
    batches = itertools.chain.from_iterable(turns)
    inputs = [next(batches)[0] for _ in range(2)]
    with training._average.in_force(), torch.no_grad():
        given = [training.model.eval().first(x) for x in inputs]
    means = torch.stack([value.mean(0) for value in given]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    # Nothing else is another: parameters learn from batches.
    for one, two in zip(training.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(norm.running_mean, other.model.norm.running_mean)


def objective_of(batch, **changes):
    recipe = make_recipe(**changes)
    teacher = make_recipe().model
    return Objective(recipe, recipe.build().model.eval(), teacher)(batch).item()


def test_a_mixed_objective_is_the_weighted_sum():
    batch = blobs(16, 3)
    loss, divergence = (objective_of(batch, objective=name) for name in ("loss", "distill"))
    mixed = objective_of(batch, objective="mixed", distill_weight=0.25)
    assert mixed == pytest.approx(0.75 * loss + 0.25 * divergence, rel=1e-5)
    assert make_recipe(objective="mixed").monitor == "loss"
    with pytest.raises(ConfigError, match="'mixed', but the Task has no loss"):
        objective_of(batch, objective="mixed", loss=None)


def test_statistics_are_taken_anew_without_waiting_for_other_ranks():
    norm = torch.nn.BatchNorm1d(3)
    model = torch.nn.Sequential(norm)
    synchronise(model, world=2)
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    # There is no group: whatever waits for it is an error.
    with pytest.raises(ValueError, match="process group"):
        model(x)
    with alone(model):
        statistics = adapt_batch_norm(model, [x, x[:5]], num_samples=13, cumulative=True)
    torch.testing.assert_close(statistics["0.running_mean"], (x.mean(0) + x[:5].mean(0)) / 2)
    with pytest.raises(ValueError, match="process group"):
        model(x)
