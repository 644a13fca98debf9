"""When quantization starts, and what a jump or a resume leaves."""

import pytest
import torch

from raysearch.config import PlacementConfig
from raysearch.controller import CompressionStage, ScheduleParams, create_controller
from raysearch.errors import ConfigError
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment
from tests.support import model_zoo
from tests.support.quantized_models import make_ranges

STAGED = {"activations_quant_start_epoch": 1, "weights_quant_start_epoch": 3}


class CountingInitializer:
    """Finds the ranges that it was given, and remembers for whom."""

    def __init__(self):
        self.ranges, self.initialised, self.adapted = None, [], 0

    def find_ranges(self, model, setup, points, params):
        self.initialised.append(tuple(points))
        return self.ranges

    def find_precision(self, model, setup, ranges, request):
        raise AssertionError

    def adapt_batch_norm(self, model):
        self.adapted += 1


def make(params=None, initializer=None):
    model = model_zoo.build("digits")
    setup = place_quantizers(model, model_zoo.inputs("digits"), PlacementConfig(weight_bit_widths=(4, 8)))
    ranges = make_ranges(model, setup)
    if initializer is not None:
        initializer.ranges = ranges
    lowest = BitAssignment.extreme(setup, 0)
    config = {"params": params or {}}
    return create_controller(model, setup, ranges, lowest, config=config, initializer=initializer)


def flags(controller):
    return {name: q.enabled for name, q in controller.all_quantizations.items()}


def test_plain_only_counts_and_everything_is_on():
    controller = make()
    assert (controller.scheduler.current_step, controller.scheduler.current_epoch) == (-1, -1)
    controller.scheduler.epoch_step()
    controller.scheduler.step()
    assert (controller.scheduler.current_step, controller.scheduler.current_epoch) == (0, 0)
    controller.scheduler.epoch_step(7)
    assert controller.scheduler.current_epoch == 7
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED


def test_d33_a_jump_lands_where_stepping_does():
    for target in (0, 1, 2, 3, 5):
        stepped, jumped, resumed = (make(STAGED) for _ in range(3))
        for _ in range(target + 1):
            stepped.scheduler.epoch_step()
        jumped.scheduler.epoch_step(target)
        resumed.load_state(stepped.get_compression_state())
        assert flags(stepped) == flags(jumped) == flags(resumed)
        assert stepped.scheduler.get_state() == jumped.scheduler.get_state() == resumed.scheduler.get_state()
        wanted = ("UNCOMPRESSED", *["PARTIALLY_COMPRESSED"] * 2, "FULLY_COMPRESSED")[min(target, 3)]
        assert stepped.compression_stage().name == jumped.compression_stage().name == wanted
        assert resumed.compression_stage().name == wanted


def test_the_stage_is_that_of_the_flags_before_the_first_step():
    on = make({"activations_quant_start_epoch": 0, "weights_quant_start_epoch": 0})
    assert on.compression_stage() is CompressionStage.FULLY_COMPRESSED
    on.disable_weight_quantization()
    assert on.compression_stage() is CompressionStage.PARTIALLY_COMPRESSED
    assert make(STAGED).compression_stage() is CompressionStage.UNCOMPRESSED


def test_d32_a_later_start_never_overwrites_trained_ranges():
    initializer = CountingInitializer()
    controller = make(STAGED, initializer)
    controller.scheduler.epoch_step(1)
    activation = next(iter(controller.setup.of_kind("activation")))
    trained = controller.all_quantizations[activation]
    with torch.no_grad():
        trained.scale.mul_(3)
    kept = trained.scale.detach().clone()
    for epoch in (2, 3, 0, 1, 3):
        controller.scheduler.epoch_step(epoch)
        assert torch.equal(trained.scale, kept)
    assert initializer.initialised == [tuple(controller.setup.of_kind(k)) for k in ("activation", "weight")]


def test_d32_after_a_resume_a_group_still_initialises_at_its_start():
    first, initializer = make(STAGED, CountingInitializer()), CountingInitializer()
    first.scheduler.epoch_step(2)
    second = make(STAGED, initializer)
    second.load_state(first.get_compression_state())
    second.scheduler.epoch_step()
    assert initializer.initialised == [tuple(second.setup.of_kind("weight"))]
    second.scheduler.epoch_step()
    assert len(initializer.initialised) == 1


def test_rates_and_decay_take_effect_through_the_scheduler():
    controller = make(
        {
            **STAGED, "base_lr": 0.5, "base_wd": 0.1, "batch_multiplier": 2,
            "lr_poly_drop_start_epoch": 2, "lr_poly_drop_duration_epochs": 4, "disable_wd_start_epoch": 3,
        }
    )  # fmt: skip
    with pytest.warns(UserWarning, match="no optimizer is attached"):
        controller.scheduler.epoch_step()
    optimizer = torch.optim.SGD(controller.model.parameters(), lr=9.0, weight_decay=7.0)
    controller.scheduler.attach(optimizer)
    seen = []
    for _ in range(6):
        controller.scheduler.epoch_step()
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))
    assert seen == [(0.5, 0.1), (0.5, 0.1), (0.375, 0), (0.25, 0), (0.125, 0), (0, 0)]
    due = []
    for _ in range(4):
        controller.scheduler.step()
        due.append(controller.scheduler.optimizer_step_due)
    assert due == [False, True, False, True]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weight_quant_start_epoch": 1}, "nearest known one is 'weights_quant_start_epoch'"),
        ({"weights_quant_start_epoch": -1}, "at least 0"),
        ({"base_lr": "high"}, "a number is wanted"),
    ],
)
def test_bad_params_are_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        ScheduleParams.read(params)


def test_the_switch_forgets_no_frozen_range_and_the_scheduler_can_be_disabled():
    """D36: what the user froze stays frozen."""
    controller = make(STAGED)
    controller.disable_scheduler()
    assert controller.compression_stage() is CompressionStage.FULLY_COMPRESSED
    name = next(iter(controller.all_quantizations))
    controller.all_quantizations[name].scale.requires_grad_(False)
    controller.disable_weight_quantization()
    controller.enable_weight_quantization()
    controller.apply(controller.assignment)
    assert not controller.all_quantizations[name].scale.requires_grad
    assert controller.frozen_ranges() == [name]
