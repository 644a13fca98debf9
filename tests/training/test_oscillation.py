"""Weights that swing between two levels are frozen."""

from __future__ import annotations

import pytest
import torch

from raysearch.artifacts import Storage
from raysearch.errors import StorageError
from raysearch.training.context import ProcessContext
from raysearch.training.oscillation import MOMENTUM, Course, Oscillations
from raysearch.training.phases import trained_weights
from raysearch.training.progress import CheckpointFolder
from raysearch.training.state import state_bytes
from tests.support.training_recipes import Plain, make_recipe, trained


def test_a_code_is_frozen_by_the_algorithm_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    walk = torch.randint(-1, 2, (60, 9), generator=generator).cumsum(0)
    walk[:, 0] = 3
    walk[:, 1] = torch.arange(60)  # changes at every step, and never turns back
    course = Course.beginning(walk[0])
    # Algorithm 1 for one weight at a time, by its words.
    threshold = 0.05
    for weight in range(9):
        code = mean = float(walk[0, weight])
        direction, frequency, frozen = 0, 0.0, None
        expected = []
        for step in range(1, 60):
            new = float(walk[step, weight]) if frozen is None else frozen
            change = (new > code) - (new < code)
            turned = change != 0 and change == -direction
            frequency = MOMENTUM * turned + (1 - MOMENTUM) * frequency
            mean = MOMENTUM * new + (1 - MOMENTUM) * mean
            direction = change or direction
            code = new
            if frozen is None and frequency > threshold:
                frozen = code = float(round(mean))
            expected.append(code)
        single = Course.beginning(walk[0, weight : weight + 1])
        seen = []
        for step in range(1, 60):
            single.follow(walk[step, weight : weight + 1], threshold)
            seen.append(float(single.codes))
        assert seen == expected
        assert bool(single.frozen) == (frozen is not None)
    for step in range(1, 60):
        course.follow(walk[step], threshold)
    assert not course.frozen[:2].any()
    assert course.frozen[2:].any()


def test_a_frozen_weight_stays_at_its_level_while_the_scale_learns():
    controller = make_recipe(bits=3).build()
    own = next(own for own in trained_weights(controller) if own.name == "head.weight")
    oscillations = Oscillations([own], 0.001)
    scale = own.quantizer.effective_scale().detach()
    start = own.quantizer.codes(own.weight.detach())
    with torch.no_grad():
        own.weight[0] = scale[0] * 1.4
        oscillations.freeze(1.0)
        for value in (1.6, 1.4, 1.6, 1.4):
            own.weight[0] = scale[0] * value
            oscillations.freeze(1.0)
        course = oscillations._courses["head.weight"]
        assert course.frozen[0].all()
        assert not course.frozen[1:].any()
        assert oscillations.share_frozen == pytest.approx(1 / len(own.weight))
        own.weight.add_(0.5)
        own.quantizer.scale.mul_(1.1)
        oscillations.freeze(1.0)
    frozen = own.quantizer.effective_scale()[0] * course.codes[0]
    torch.testing.assert_close(own.weight[0], frozen, rtol=0, atol=0)
    assert torch.equal(own.quantizer(own.weight)[0], own.weight[0])
    assert (own.quantizer.codes(own.weight.detach())[0] == course.codes[0]).all()
    assert ((course.codes[0] - start[0].float()).abs() <= 4).all()


def test_a_training_that_freezes_goes_on_bit_for_bit(tmp_path):
    settings = {"kind": Plain, "bits": 2, "epochs": 2, "learning_rate": 0.05, "checkpoint_steps": 2}

    class Stopping(ProcessContext):
        def tell(self, status):
            if status.step == 9 and status.loss is not None:
                raise KeyboardInterrupt

    def frozen(context=None):
        recipe = make_recipe(**settings, oscillation_threshold=0.001)
        return trained(recipe, context) if context else trained(recipe)

    expected = frozen()
    assert 0 < expected._oscillations.share_frozen < 1
    assert state_bytes(expected.model) != state_bytes(trained(make_recipe(**settings)).model)
    with pytest.raises(KeyboardInterrupt):
        frozen(Stopping(folder=CheckpointFolder(Storage(tmp_path))))
    resumed = frozen(ProcessContext(folder=CheckpointFolder(Storage(tmp_path))))
    assert state_bytes(resumed.model) == state_bytes(expected.model)
    tensors = expected._oscillations.tensors()
    name = next(iter(tensors))
    with pytest.raises(StorageError, match="belongs to another setup"):
        expected._oscillations.load({**tensors, name: torch.zeros(1)})
