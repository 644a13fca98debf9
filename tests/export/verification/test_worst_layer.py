import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from raysearch.errors import ExportError
from raysearch.evaluation.forward import frozen_eval
from raysearch.export.onnx_qdq.session import OnnxModel
from raysearch.export.targets import TARGETS, Verification
from raysearch.export.verification.verify import reference_outputs
from raysearch.export.verification.worst_layer import compare_layers, tell_worst
from raysearch.records import LayerFlips
from tests.support.export_cases import case, forward_all, write_onnx


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    net, path = case("residual", 8), tmp_path_factory.mktemp("worst") / "model.onnx"
    write_onnx(net.model, path)
    return net, path


def feeds_of(path, batches):
    model = OnnxModel(path, optimized=False)
    feeds = []
    model.record = feeds.append
    # As verification runs the file.
    with frozen_eval(model):
        for batch in batches:
            model(*batch)
    return feeds


def damage(path, target, layer, factor):
    """Multiply the bias of one convolution."""
    proto = onnx.load(path)
    node = next(node for node in proto.graph.node if node.op_type == "Conv" and node.name == layer)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == node.input[2])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(factor), bias.name))
    onnx.save(proto, target)


def test_every_layer_of_a_right_file_computes_the_modules_codes(written):
    net, path = written
    batches = [net.inputs(5), net.inputs(3)]
    hooks = [len(module._forward_hooks) for module in net.stripped.modules()]
    layers = compare_layers(path, net.stripped, batches, feeds_of(path, batches), forward_all)
    names = {p.id for p in net.setup.of_kind("activation").values()}
    assert {layer.name for layer in layers} == names
    # Means of codes often fall right between two.
    assert all(
        layer.max_steps <= 1 and (layer.rate < 0.002 or layer.name == "head.input") for layer in layers
    )
    assert [len(module._forward_hooks) for module in net.stripped.modules()] == hooks


def test_a_wrong_layer_is_named_with_its_figures_and_no_layer_after_it(written, tmp_path):
    net, path = written
    damage(path, tmp_path / "model.onnx", "blocks.0.pointwise", 3.0)
    batches = [net.inputs(64)]
    references = reference_outputs(net.stripped, batches, forward_all)
    with pytest.raises(
        ExportError, match=r"The worst layer is '([\w.]+)': \d+ of \d+ codes differ .* up to \d+ steps.*0\.2%"
    ) as error:
        TARGETS["onnx"].check(tmp_path, Verification(net.stripped, references, forward_all))
    feeds = feeds_of(tmp_path / "model.onnx", batches)
    layers = compare_layers(tmp_path / "model.onnx", net.stripped, batches, feeds, forward_all)
    assert [layer.name for layer in layers if layer.max_steps > 1] == ["blocks.0.add0.input1"]
    assert "The worst layer is 'blocks.0.add0.input1'" in str(error.value)


def test_a_module_without_quantizers_names_no_layer(written):
    net, path = written
    batches = [net.inputs(2)]
    feeds = feeds_of(path, batches)
    assert compare_layers(path, OnnxModel(path), batches, feeds, forward_all) == ()
    assert tell_worst(()) == ""


def test_where_all_layers_agree_the_fault_is_behind_the_last_quantizer():
    layers = (LayerFlips("a.input", 0, 1000, 0), LayerFlips("b.input", 1, 1000, 1))
    assert tell_worst(layers).startswith(
        "No layer before the last quantizer is at fault; of the worst, 'b.input', 1 of 1000 codes differ"
    )
