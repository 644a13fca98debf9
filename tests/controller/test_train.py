import pytest
import torch
from torch import Tensor, nn

from tests.support import model_zoo
from tests.support.quantized_models import quantized, run


def backward(model: nn.Module, name: str) -> None:
    model_zoo.output(model(*model_zoo.inputs(name))).square().sum().backward()


@pytest.mark.parametrize("name", model_zoo.NETS)
def test_gradients_reach_every_weight_and_every_enabled_scale(name: str) -> None:
    q = quantized(name, 4)
    q.model.train()
    backward(q.model, name)
    missing = [n for n, p in q.model.named_parameters() if p.grad is None]
    assert missing == []
    held = q.controller.all_quantizations
    still = [n for n, x in held.items() if x.scale.grad is None or not bool(x.scale.grad.any())]
    assert still == []
    assert all(bool(torch.isfinite(p.grad).all()) for p in q.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["shared_relu", "encoder", "in_place"])
def test_what_is_left_out_asks_for_no_gradient(name: str) -> None:
    q = quantized(name, 4)
    off = list(q.setup.groups)[::2]
    q.controller.apply(type(q.assignment)({g: 4 for g in q.setup.groups if g not in off}))
    q.model.train()
    backward(q.model, name)
    # DistributedDataParallel waits for each parameter that requires a gradient.
    assert [n for n, p in q.model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_weight_gradients_are_the_straight_through_ones() -> None:
    q = quantized("wave", 3)
    q.controller.disable_activation_quantization()
    backward(q.model, "wave")
    layer = q.model.get_submodule("out")
    original: Tensor = layer.parametrizations.weight.original  # type: ignore[union-attr,assignment]
    scale = q.controller.all_quantizations["out.weight"].scale
    plain = model_zoo.build("wave")
    with torch.no_grad():
        for point in q.setup.of_kind("weight"):
            plain.get_parameter(point).copy_(getattr(q.model.get_submodule(point[:-7]), "weight"))  # noqa: B009
    backward(plain, "wave")
    inside = ((original / scale).round() >= -4) & ((original / scale).round() <= 3)
    expected = plain.get_parameter("out.weight").grad
    assert expected is not None
    assert original.grad is not None
    torch.testing.assert_close(original.grad, expected * inside)


def test_a_few_steps_lower_the_distance_to_the_float_model() -> None:
    q = quantized("digits", 3)
    target = run(model_zoo.build("digits"), q.inputs)
    parameters = [p for p in q.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=5e-4)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (q.model(*q.inputs) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert min(losses) < 0.75 * losses[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, inside its compiler
@pytest.mark.parametrize("name", ["digits", "shared_relu"])
def test_it_compiles_whole_with_the_same_outputs_and_gradients(name: str) -> None:
    torch._dynamo.reset()
    eager, other = quantized(name), quantized(name)
    graphs = []

    def backend(graph: torch.fx.GraphModule, example: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(other.model, fullgraph=True, backend=backend)
    assert torch.equal(run(compiled, eager.inputs), run(eager.model, eager.inputs))  # type: ignore[arg-type]
    for model in (eager.model, compiled):
        model.train()  # type: ignore[union-attr]
        backward(model, name)  # type: ignore[arg-type]
    assert len(graphs) == 2, "one graph in eval mode, one in training"
    for a, b in zip(eager.model.parameters(), other.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, b.grad)


def test_batchnorm_statistics_follow_the_training_as_in_the_float_model() -> None:
    q = quantized("digits")
    norm = q.model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    before = norm.running_mean.clone()  # type: ignore[union-attr]
    q.model.train()
    backward(q.model, "digits")
    q.model.eval()
    assert not torch.equal(norm.running_mean, before)  # type: ignore[arg-type]
