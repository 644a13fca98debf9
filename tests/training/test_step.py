"""What one step of QAT changes, and what it draws."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from raysearch.config import TrainingConfig
from raysearch.determinism import reproducible
from raysearch.errors import ConfigError
from raysearch.training import fine_tune
from raysearch.training.context import ProcessContext
from raysearch.training.feed import Draws, drawn, in_one
from raysearch.training.loop import train
from raysearch.training.objective import Objective
from raysearch.training.phases import Phases
from raysearch.training.schedule import Schedule
from raysearch.training.state import state_bytes
from raysearch.training.step import Stepper
from raysearch.training.trial_step import be_as_strict_as_possible
from tests.support.training_recipes import Plain, Toy, blobs, cross_entropy, make_recipe, trained


def test_frozen_parameters_stay_and_everything_else_moves():
    recipe = make_recipe(epochs=1)
    recipe.model.head.bias.requires_grad_(False)
    start = recipe.build().model.state_dict()
    controller = recipe.build()
    controller.model.load_state_dict(trained(recipe).model.state_dict())
    for name, value in controller.model.state_dict().items():
        fixed = name == "head.bias" or name.endswith("_extra_state")
        assert torch.equal(value, start[name]) == fixed, name


def test_scales_move_by_a_share_of_their_own_size():
    recipe = make_recipe(epochs=1, batch_size=192, scale_learning_rate=0.01, learning_rate=1e-9)
    before, after = recipe.build(), recipe.build()
    after.model.load_state_dict(trained(recipe).model.state_dict())
    for name, quantizer in after.all_quantizations.items():
        old = before.all_quantizations[name].effective_scale()
        # Adam's first step is the learning rate.
        moved = (quantizer.effective_scale() - old).abs()
        assert float(moved.detach().max()) == pytest.approx(0.01 * float(old.detach().mean()), rel=1e-2)


def test_ranks_draw_one_order_and_their_own_noise():
    x = torch.arange(12.0)
    loader = DataLoader(TensorDataset(x), batch_size=2, shuffle=True)

    def order(rank, epoch):
        draws = Draws(3, epoch, rank)
        batches = [batch[0].tolist() for batch in drawn(loader, draws)]
        draws.for_computing(5)
        return batches, torch.rand(1).item()

    first, noise = order(0, 0)
    second, other_noise = order(1, 0)
    assert first == second
    assert noise != other_noise
    assert first != order(0, 1)[0]
    assert order(1, 0) == (second, other_noise)


class OneOfTwo(ProcessContext):
    """A rank of two, whose gradients are looked at before they would be averaged."""

    world = 2

    def __init__(self, rank):
        super().__init__()
        self.rank = rank

    def total(self, count):
        return 8


class Watched:
    """An optimizer that changes nothing."""

    parameters = ()
    learning_rate = 0.1

    def set_factor(self, factor):
        pass

    def zero_grad(self):
        pass

    step = zero_grad


def gradients(context, *batches):
    recipe = make_recipe(kind=Plain)
    controller = recipe.build()
    objective = Objective(recipe, controller.model, recipe.model)
    schedule, phases = Schedule(recipe.settings, 1), Phases(controller, recipe.settings)
    stepper = Stepper(recipe, context, objective, Watched(), schedule, phases)
    (step,) = stepper.steps([list(batches)], 0, 0, 0)
    assert step.samples == 8
    return [parameter.grad for parameter in objective.model.parameters()]


def test_ranks_with_unequal_shares_average_to_the_gradient_of_all_samples(monkeypatch):
    monkeypatch.setattr(Objective, "no_sync", nullcontext, raising=False)
    x, y = blobs(8, 1)
    expected = gradients(ProcessContext(), (x, y))
    # The first has a batch that was left over besides its own.
    first = gradients(OneOfTwo(0), (x[:3], y[:3]), (x[3:5], y[3:5]))
    second = gradients(OneOfTwo(1), (x[5:], y[5:]))
    for one, other, whole in zip(first, second, expected, strict=True):
        torch.testing.assert_close((one + other) / 2, whole)


def test_a_rank_with_a_batch_more_runs_as_often_as_the_others():
    x, y = blobs(8, 1)
    turns = [[(x[:2], y[:2])], [(x[2:4], y[2:4]), (x[4:], y[4:])], [(x, "texts"), (x, "texts")]]
    first, (joined,), last = in_one(turns)
    assert (first, last) == (turns[0], turns[2][:1])
    assert torch.equal(joined[0], x[2:])


def scattered(outputs, batch):
    """A loss whose forward has no deterministic form."""
    places = torch.arange(outputs.numel()).reshape(outputs.shape)
    return cross_entropy(torch.zeros_like(outputs).put_(places, outputs), batch)


@pytest.mark.parametrize("loss", [cross_entropy, scattered])
def test_what_has_no_deterministic_form_is_tried_before_and_allowed_only_where_it_is_needed(loss):
    recipe = make_recipe(loss=loss)
    before = torch.get_rng_state()
    with reproducible():
        if loss is cross_entropy:
            be_as_strict_as_possible(recipe, recipe.model, torch.device("cpu"))
        else:
            with pytest.warns(UserWarning, match="put_ does not have a deterministic"):
                be_as_strict_as_possible(recipe, recipe.model, torch.device("cpu"))
        assert torch.get_deterministic_debug_mode() == (2 if loss is cross_entropy else 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("deterministic", [True, False])
def test_training_here_takes_deterministic_algorithms_and_puts_the_users_back(deterministic):
    modes = []

    def loss(outputs, batch):
        modes.append(torch.get_deterministic_debug_mode())
        return cross_entropy(outputs, batch)

    recipe = make_recipe(epochs=1, loss=loss, deterministic=deterministic)
    fine_tune(recipe, lambda name, data: None, on_ray=False)
    # 1 warns of an operation that has no deterministic form: much was computed before training.
    assert set(modes) == {1 if deterministic else 0}
    assert torch.get_deterministic_debug_mode() == 0


class Blocks(Toy):
    """With two blocks before the head."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.2)) for _ in range(2))

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_gradient_checkpointing_trains_to_the_same_bits():
    torch.manual_seed(3)
    recipe = make_recipe(kind=Blocks, epochs=1)
    settings = recipe.settings.model_copy(update={"gradient_checkpointing": True})
    states = []
    for each in (recipe, replace(recipe, settings=settings)):
        states.append(state_bytes(trained(each).model))
    assert states[0] == states[1]


def test_gradient_checkpointing_of_a_model_without_blocks_is_refused():
    recipe = make_recipe(epochs=1, gradient_checkpointing=True)
    with pytest.raises(ConfigError, match="Toy has no repeated blocks"):
        train(recipe, ProcessContext())


def final(**settings):
    recipe = make_recipe(epochs=2, **settings)
    controller = recipe.build()
    controller.model.load_state_dict(trained(recipe).model.state_dict())
    return torch.cat([parameter.detach().reshape(-1) for parameter in controller.model.parameters()])


def test_batches_accumulated_to_a_global_batch_step_as_one_batch_of_its_size():
    expected = final(kind=Plain, batch_size=64)
    torch.testing.assert_close(final(kind=Plain, batch_size=24, global_batch_size=64), expected)
    batches = [blobs(16, seed) for seed in range(8)]
    large = [tuple(torch.cat(parts) for parts in zip(*batches[n : n + 3], strict=True)) for n in (0, 3, 6)]
    accumulated = final(kind=Plain, train=batches, global_batch_size=48)
    torch.testing.assert_close(accumulated, final(kind=Plain, train=large))


def test_a_gradient_is_shortened_to_the_greatest_norm(monkeypatch):
    norms = []

    def clipped(parameters, limit):
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters])))
        return clip(parameters, limit)

    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clipped)
    assert torch.equal(final(max_grad_norm=1e6), final())
    assert len(norms) == 12
    assert not torch.equal(final(max_grad_norm=min(norms) / 2), final())


def test_training_ends_after_its_steps():
    result = fine_tune(make_recipe(steps=8, epochs=0), lambda n, d: None, on_ray=False)
    assert [entry.epoch for entry in result.history] == [-1, 0, 1]


def test_a_global_batch_that_cannot_be_shared_is_refused_with_the_next_ones():
    with pytest.raises(ConfigError, match=r"global_batch_size is 7, which 3 workers .* take 6 or 9"):
        TrainingConfig(global_batch_size=7).share_of_one(3)


def test_batch_norm_keeps_its_statistics_from_some_point_on():
    start = make_recipe().build().model.norm.running_mean
    frozen = trained(make_recipe(epochs=2, batch_norm_freeze_after=0.0)).model.norm
    assert torch.equal(frozen.running_mean, start)
    half, one = (
        trained(make_recipe(epochs=2, **settings)).model.norm
        for settings in ({"batch_norm_freeze_after": 0.5}, {})
    )
    assert (int(half.num_batches_tracked), int(one.num_batches_tracked)) == (80 + 6, 80 + 12)


def test_autocast_trains_with_parameters_in_float32():
    types = []

    def loss(outputs, batch):
        types.append((outputs.dtype, outputs.requires_grad))
        return cross_entropy(outputs.float(), batch)

    half = trained(make_recipe(epochs=1, precision="bfloat16", loss=loss))
    assert set(types) == {(torch.bfloat16, True), (torch.float32, False)}
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}
    single = trained(make_recipe(epochs=1))
    for one, other in zip(half.model.parameters(), single.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)


def test_features_of_blocks_are_compared_with_the_float_models():
    torch.manual_seed(3)
    recipe = make_recipe(kind=Blocks, bits=8, feature_weight=2.0)
    teacher, batch = recipe.model, blobs(16, 4)
    controller = recipe.build()
    objective = Objective(recipe, controller.model.eval(), teacher)
    outputs: list[Tensor] = []
    for block in (*teacher.blocks, *controller.model.blocks):
        block.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    value = objective(batch)
    # The student runs first.
    student, float_ones = outputs[:2], outputs[2:]
    ratios = [((a - b).norm() / b.norm()) ** 2 for a, b in zip(student, float_ones, strict=True)]
    loss = cross_entropy(controller.model(batch[0]), batch)
    assert value.item() == pytest.approx((loss + 2 * sum(ratios) / 2).item(), rel=1e-5)
    value.backward()
    with pytest.raises(ConfigError, match="feature_weight is set, but Toy has no repeated blocks"):
        Objective(make_recipe(feature_weight=1.0), make_recipe().build().model, make_recipe().model)
