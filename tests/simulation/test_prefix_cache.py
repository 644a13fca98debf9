"""Handing out the outputs of earlier layers: what is skipped, what is not, and that no bit changes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from raysearch.calibration import calibrate
from raysearch.cluster.pool import LocalPool
from raysearch.config import CalibrationConfig, PlacementConfig, SensitivityConfig
from raysearch.evaluation import Divergence, Replica, WorkerCache, default_forward
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment
from raysearch.sensitivity.responses import measure_responses
from raysearch.simulation.blocks import repeated_blocks
from raysearch.simulation.simulated_model import FEW_SAMPLES, SimulatedModel

RUNS: list[str] = []


class Layer(nn.Linear):
    def __init__(self, name):
        super().__init__(4, 4)
        self.name = name

    def forward(self, x):
        RUNS.append(self.name)
        return super().forward(x)


class Net(nn.Module):
    """Layers a, b, c and d; subclasses say how they are joined."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (Layer(name) for name in "abcd")

    def forward(self, x):
        return self.d(self.c(F.relu(self.b(torch.tanh(self.a(x))))))


class Nested(Net):
    def __init__(self):
        super().__init__()
        self.front = nn.Sequential(self.a, nn.Sequential(self.b, nn.ReLU(inplace=True)))

    def forward(self, x):
        return self.d(self.c(self.front(x)))


class InPlace(Net):
    """Outputs that are overwritten by a function, by a module, and through another name."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.a(x).relu_()
        z = self.b(y)
        self.relu(z)
        y += self.c(z)
        return self.d(y + z)


class Alias(Net):
    """A layer that gives back what it was given."""

    def __init__(self):
        super().__init__()
        self.same, self.flat = nn.Identity(), nn.Flatten()

    def forward(self, x):
        y = self.a(x)
        other = self.flat(self.same(y))
        other += 1
        return self.d(self.c(F.relu(self.b(y))))


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Fork(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x):
        return {"both": Pair(self.a(x), self.b(x)), "more": [x * 2, None, 3]}


class Structured(Net):
    """A dict with a named tuple and a list that the caller changes."""

    def __init__(self):
        super().__init__()
        self.fork = Fork(self.a, self.b)

    def forward(self, x):
        found = self.fork(x)
        found["more"].append(4)
        found["more"][0].mul_(len(found["more"]))
        return self.d(self.c(found["both"].left + found["more"][0])) + found["both"].right


class Again(Net):
    """A layer that is used early and late, and whose weight is read by its parent before it is called."""

    def forward(self, x):
        y = self.b(self.a(x))
        y = self.c(y + F.linear(x, self.d.weight))
        return self.d(torch.tanh(self.a(y)))


class Stateful(Net):
    """A layer that leaves a tensor for later: handing out its output would leave another's."""

    class Keeper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.kept = inner, None

        def forward(self, x):
            self.kept = self.inner(x)
            return self.kept * 2

    def __init__(self):
        super().__init__()
        self.keeper = self.Keeper(self.b)

    def forward(self, x):
        y = self.c(self.keeper(self.a(x)))
        return self.d(y + self.keeper.kept)


class Buffered(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen.copy_(self.b(self.a(x)).mean(0))
        return self.d(self.c(x) + self.seen)


class Whole(InPlace):
    """A forward that refuses a few samples alone."""

    def forward(self, x):
        if len(x) == FEW_SAMPLES:
            raise ValueError("not enough samples")
        return super().forward(x)


NETS = (Net, Nested, InPlace, Alias, Structured, Again, Stateful, Buffered, Whole)


@cache
def placed(net):
    """The model, its data, places and ranges; capture costs more than all else."""
    torch.manual_seed(0)
    model = net().eval()
    shards = [torch.randn(size, 4) for size in (5, 3)]
    replica = Replica(model, default_forward, {"calibration": shards}, Divergence("mse"))
    setup = place_quantizers(
        model, (shards[0],), PlacementConfig(weight_bit_widths=(2, 3), activation_bit_widths=(3,))
    )
    ranges = calibrate(
        setup, LocalPool(replica), 2, CalibrationConfig(weights="min_max", activations="min_max")
    )
    return replica, setup, ranges


def make_case(net):
    replica, setup, ranges = placed(net)
    return replace(replica, cache=WorkerCache()), setup, ranges


def runs_of(twin, replica, group, shard=0):
    RUNS.clear()
    twin.later_outputs(replica, BitAssignment({group: 3}), "calibration", shard)
    return "".join(RUNS)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("cache_bytes", [2**20, 400])
def test_no_bit_changes_whatever_is_kept(net, cache_bytes):
    replica, setup, ranges = make_case(net)
    twin, plain = (SimulatedModel(replica.model, setup, ranges, size) for size in (cache_bytes, 0))
    options = setup.options()
    for shard in (0, 1):
        for lo in range(0, len(options), 3):
            chunk = options[lo : lo + 3]
            twin.record(replica, chunk, "calibration", shard)
            for option in (*chunk, *reversed(options)):
                arguments = replica, BitAssignment(dict([option])), "calibration", shard
                assert torch.equal(twin.later_outputs(*arguments), plain.outputs(*arguments)), option


@pytest.mark.parametrize(
    ("net", "group", "expected"),
    [
        (Net, "a.weight", "abcd"),
        (Net, "b.weight", "bcd"),
        (Net, "d.weight", "d"),
        (Net, "d.input", "d"),
        (Nested, "b.weight", "bcd"),
        (Nested, "c.weight", "cd"),
        (InPlace, "c.weight", "cd"),
        (Alias, "c.weight", "cd"),
        (Structured, "c.weight", "cd"),
        (Again, "a.weight", "abcad"),
        (Again, "c.weight", "cad"),
        (Again, "d.weight", "cad"),
        (Stateful, "d.weight", "d"),
        (Buffered, "d.weight", "d"),
    ],
)
def test_only_what_comes_after_the_first_read_is_run(net, group, expected):
    replica, setup, ranges = make_case(net)
    assert group in setup.groups
    twin = SimulatedModel(replica.model, setup, ranges)
    twin.record(replica, setup.options(), "calibration", 0)
    assert runs_of(twin, replica, group) == expected
    assert runs_of(twin, replica, group, shard=1) in ("abcd", "abcad"), "another shard was not recorded"


def test_a_shard_is_recorded_once_and_outputs_are_kept_within_the_limit():
    replica, setup, ranges = make_case(Net)
    twin = SimulatedModel(replica.model, setup, ranges)
    twin.record(replica, setup.options(), "calibration", 0)
    RUNS.clear()
    for lo in range(4):
        twin.record(replica, setup.options()[lo : lo + 1], "calibration", 0)
    assert not RUNS
    twin.record(replica, setup.options()[:1], "calibration", 1)
    assert "".join(RUNS) == "abcd"
    # Outputs of 5 samples of 4 floats are 80 bytes each; half of the limit is theirs.
    small = SimulatedModel(replica.model, setup, ranges, 2 * 100)
    small.record(replica, [("d.weight", 3)], "calibration", 0)
    assert sum(v.nbytes for v in small._prefix._recording.outputs.values()) == 80


def test_the_call_order_of_another_shard_is_its_own():
    class Chooses(Net):
        def forward(self, x):
            y = self.b(self.a(x)) if len(x) > 4 else self.a(self.b(x))
            return self.d(self.c(y))

    replica, setup, ranges = make_case(Chooses)
    twin, plain = (SimulatedModel(replica.model, setup, ranges, size) for size in (2**20, 0))
    for shard, expected in ((0, "abcd"), (1, "acd"), (0, "abcd")):
        twin.record(replica, setup.options(), "calibration", shard)
        assert runs_of(twin, replica, "a.weight", shard) == expected
        arguments = replica, BitAssignment({"a.weight": 2}), "calibration", shard
        assert torch.equal(twin.later_outputs(*arguments), plain.outputs(*arguments))


def test_one_forward_of_a_shard_serves_the_recording_and_the_reference():
    replica, setup, ranges = make_case(InPlace)
    twin = SimulatedModel(replica.model, setup, ranges)
    sizes = []
    twin.model.a.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    twin.record(replica, setup.options(), "calibration", 0)
    assert sizes == [FEW_SAMPLES, FEW_SAMPLES, 5], "calls, and what is overwritten, are learned on a few"
    twin.record(replica, setup.options(), "calibration", 1)
    assert sizes[3:] == [3]
    RUNS.clear()
    got = replica.float_outputs("calibration", 1)
    assert not RUNS
    with torch.no_grad():
        assert torch.equal(got, replica.model(replica.shards["calibration"][1]))


class Noisy(Net):
    def forward(self, x):
        return self.d(self.c(self.b(self.a(x)) + torch.randn(len(x), 4)))


def test_a_forward_that_draws_is_run_in_full():
    replica, setup, ranges = make_case(Noisy)
    twin = SimulatedModel(replica.model, setup, ranges)
    twin.record(replica, setup.options(), "calibration", 0)
    assert runs_of(twin, replica, "d.weight") == "abcd"


class Block(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return x + self.second(torch.tanh(self.first(x)))


class Decoder(Net):
    """Two residual blocks between a first layer and a last one."""

    def __init__(self):
        super().__init__()
        self.e, self.f = Layer("e"), Layer("f")
        self.blocks = nn.ModuleList([Block(self.b, self.c), Block(self.d, self.e)])

    def forward(self, x):
        x = self.a(x)
        for block in self.blocks:
            x = block(x)
        return self.f(x)


def test_with_little_room_a_forward_restarts_at_the_block_that_changed():
    replica, setup, ranges = make_case(Decoder)
    # Five outputs of 80 bytes are too much, the three between the blocks are not.
    twin, plain = (SimulatedModel(replica.model, setup, ranges, size) for size in (600, 0))
    options = setup.options()
    twin.record(replica, options[:2], "calibration", 0)
    RUNS.clear()
    twin.record(replica, options[-2:], "calibration", 0)
    assert RUNS == []
    expected = {"a": "abcdef", "b": "bcdef", "c": "bcdef", "d": "def", "e": "def", "f": "f"}
    ids = {point.removesuffix(".weight")[-1]: setup.group_of(point).id for point in setup.of_kind("weight")}
    assert {name: runs_of(twin, replica, group) for name, group in ids.items()} == expected
    for option in options:
        arguments = replica, BitAssignment(dict([option])), "calibration", 0
        assert torch.equal(twin.later_outputs(*arguments), plain.outputs(*arguments)), option


def test_blocks_are_what_a_container_repeats():
    model = Decoder()
    assert repeated_blocks(model) == {id(block) for block in model.blocks}
    stages = nn.Sequential(nn.Sequential(*model.blocks), nn.Sequential(Block(model.a, model.f)))
    assert repeated_blocks(stages) == {id(block) for block in model.blocks}
    assert repeated_blocks(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))) == set()


HIDDEN: list[torch.Tensor] = []


class Hidden(Net):
    """A path that no one sees: a global."""

    class Writer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            y = self.inner(x)
            HIDDEN[:] = [y]
            return y * 2

    def __init__(self):
        super().__init__()
        self.writer = self.Writer(self.b)

    def forward(self, x):
        y = self.c(self.writer(self.a(x)))
        return self.d(y + HIDDEN[0])


def test_what_cannot_be_seen_is_found_by_the_check_and_measured_in_full():
    replica, setup, ranges = make_case(Hidden)
    pool = LocalPool(replica)
    with pytest.warns(UserWarning, match="full forwards"):
        got = measure_responses(setup, ranges, pool, 2, SensitivityConfig(option_chunk=99))
    twin = SimulatedModel(replica.model, setup, ranges, 0)
    rows = []
    for option in setup.options():
        rows.append([])
        for shard in (0, 1):
            outputs = twin.outputs(replica, BitAssignment(dict([option])), "calibration", shard)
            reference = replica.float_outputs("calibration", shard)
            rows[-1].append(replica.divergence.weighted(outputs.double() - reference.double(), reference))
    flat = np.array([torch.cat(parts).flatten().tolist() for parts in rows])
    assert got.gram == pytest.approx(flat @ flat.T / 8, rel=1e-9)
