import torch
from torch import nn

from raysearch.config import PlacementConfig
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, CostModel, QuantizerSetup


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 4, 3, padding=1)
        self.skip = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.a(x))
        x = torch.relu(self.b(y) + self.skip(x))
        return self.fc(nn.functional.max_pool2d(x, 2).flatten(1)), x.exp()


def place():
    return place_quantizers(Net(), (torch.zeros(2, 3, 4, 4),), PlacementConfig(activation_bit_widths=(4, 8)))


def test_what_is_kept_how_large_and_at_which_width():
    setup = place()
    found = {t.name: (t.num_elements, t.point) for t in setup.tensors}
    assert found == {
        "x": (48, "stem.input"),
        "conv2d": (128, "a.input"),  # normalised and rectified in place; a and skip read it
        "conv2d_1": (128, "b.input"),
        "conv2d_2": (64, "add0.input0"),
        "conv2d_3": (64, "add0.input1"),
        "add": (64, ""),  # exp reads it as float
        "max_pool2d": (16, "fc.input"),
        "linear": (5, ""),
        "exp": (64, ""),
    }
    at = {t.name: t for t in setup.tensors}
    order = [at[name].first for name in ("x", "conv2d", "conv2d_1", "conv2d_2", "conv2d_3", "add", "linear")]
    assert order == sorted(order)
    assert at["x"].last == at["conv2d"].first, "its only reader makes the next tensor"
    assert at["conv2d"].last == at["conv2d_3"].first > at["conv2d_1"].last
    assert at["add"].last == at["exp"].first
    assert at["linear"].last == at["exp"].last == max(t.last for t in setup.tensors), "outputs stay"


def test_the_peak_by_hand():
    setup = place()
    model = CostModel(setup)
    # While b runs, a's input waits for skip: 128 + 128 + 64 values.
    assert model.costs(BitAssignment({}))["activation_memory"] == 4 * 320
    # At 8 bits that is less than exp with its input, its result and the 5 outputs of fc, all float32.
    assert model.highest["activation_memory"] == 4 * (64 + 64 + 5)
    assert QuantizerSetup.from_json(setup.to_json()) == setup
