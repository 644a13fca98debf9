"""A captured graph with the values of another stripping is the graph that a capture of it would give."""

import pytest
import torch
from torch import nn

from raysearch.export.onnx_qdq.capture import capture, capture_with_program
from raysearch.export.onnx_qdq.proto import finish
from raysearch.export.onnx_qdq.template import GraphTemplate
from tests.support.export_cases import case
from tests.support.grouped_cases import grouped


def template_of(net):
    graph, fixed, program = capture_with_program(net.stripped, net.model.weights, net.example)
    return GraphTemplate.of(graph, program, net.stripped, fixed)


NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm


def trained(net, by):
    """The net with the floats that training changes besides codes and scales changed."""
    for place, module in enumerate(filter(lambda m: isinstance(m, NORMS), net.stripped.modules())):
        module.weight.data.add_(by * torch.linspace(0.1, 0.2 + place, module.weight.numel()))
        module.bias.data.add_(by * torch.linspace(0.3, 0.4 + place, module.bias.numel()))
    return net


def written(graph, net):
    return finish(graph.clone(), net.model.weights).SerializeToString(deterministic=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("early", "late"),
    [
        (lambda: case("residual", 2), lambda: case("residual", 5)),
        (lambda: case("residual", 8), lambda: case("residual")),
        (lambda: case("encoder", 3), lambda: case("encoder", 8)),
        (lambda: case("tied", 2), lambda: case("tied", 6)),
        (lambda: grouped("rows", 4, 32), lambda: grouped("rows", 3, 16, asymmetric=True)),
    ],
    ids=["no limit any more", "limits", "attention", "tied", "groups"],
)
def test_a_filled_graph_is_a_fresh_one(early, late):
    template = template_of(trained(early(), 1))
    net = trained(late(), 2)
    fresh, _ = capture(net.stripped, net.model.weights, net.example)
    assert written(template.filled(net.stripped), net) == written(fresh, net)


def test_tensors_of_equal_values_are_captured_anew():
    # The exporter keeps one of the two norms' weights, which are all ones.
    assert template_of(case("residual", 4)) is None


def test_what_is_computed_of_weights_alone_is_captured_anew():
    # The gain is given two dimensions before it meets an input.
    assert template_of(case("waves", 4)) is None


def test_another_form_is_captured_anew():
    net = case("tied", 4)
    assert template_of(net).filled(case("tied", 4, left_out=("table.weight",)).stripped) is None
