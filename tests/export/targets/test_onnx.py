import onnx
import pytest
import torch
from torch.nn.utils.parametrizations import orthogonal

from raysearch.calibration import calibrate_model
from raysearch.controller import create_controller, stripped_weights
from raysearch.errors import ExportError
from raysearch.export import TARGETS, verify_folder
from raysearch.export.onnx_qdq.capture import capture
from raysearch.export.onnx_qdq.session import OnnxModel
from raysearch.export.outputs import tensor_leaves
from raysearch.export.targets.qdq_target import container_notes
from raysearch.export.verification.verify import compare, reference_outputs, within_tolerance
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment
from tests.contracts.target_contract import GraphTargetContract
from tests.support.export_cases import Case, case, forward_all, write_onnx


class TestOnnxTarget(GraphTargetContract):
    target = TARGETS["onnx"]


def write(net, folder):
    write_onnx(net.model, folder / "model.onnx")
    return onnx.load(folder / "model.onnx")


def greatest_difference(net, path, count=7, optimized=False):
    model, inputs = OnnxModel(path, optimized), net.inputs(count)
    with torch.no_grad():
        pairs = zip(tensor_leaves(net.stripped(*inputs)), tensor_leaves(model(*inputs)), strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Net → its case, the folder of its file, and the file's content; each is exported once."""
    known = {}

    def get(name):
        if name not in known:
            net, folder = case(name), tmp_path_factory.mktemp(name)
            known[name] = net, folder, write(net, folder)
        return known[name]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seven", "waves", "tied"])
def test_the_file_computes_what_the_stripped_module_computes(written, name, capfd):
    net, folder, proto = written(name)
    onnx.checker.check_model(proto, full_check=True)
    for count in (1, 7):
        assert greatest_difference(net, folder / "model.onnx", count) < 1e-5
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_only_codes_scales_and_biases_are_stored(written):
    _, _, proto = written("seven")
    floats = [t for t in proto.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert all(len(tensor.dims) < 2 or tensor.dims[0] == 1 for tensor in floats)
    assert not any(node.doc_string or node.metadata_props for node in proto.graph.node)
    assert not proto.graph.value_info
    stored = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in proto.graph.initializer}
    # 81 codes are too few for a bit stream with its decoder.
    for index, kind in enumerate(("INT2", "INT4", "INT4", "INT8", "INT8", "INT8", "INT8")):
        name = f"layers.{index}.weight"
        assert [stored[n] for n in stored if n.startswith(name)] == [kind]
    assert (proto.opset_import[0].version, proto.ir_version) == (25, 13)


def test_equal_layers_keep_their_numbers(tmp_path):
    net = case("twins", 4)
    proto = write(net, tmp_path)
    assert sum(node.op_type == "DequantizeLinear" for node in proto.graph.node) >= 3
    assert greatest_difference(net, tmp_path / "model.onnx") < 1e-5


@pytest.mark.slow
def test_integer_kernels_stay_close_at_low_widths(tmp_path):
    net = case("residual", 2)
    write(net, tmp_path)
    references = reference_outputs(net.stripped, [net.inputs(128)], forward_all)
    for optimized in (False, True):
        model = OnnxModel(tmp_path / "model.onnx", optimized)
        check = compare("onnx", model.runtime, model, references, forward_all)
        assert within_tolerance(check, references)


@pytest.mark.slow
def test_four_bit_activations_are_clipped_in_a_uint8_container(tmp_path):
    net = case("twins", 2)
    proto = write(net, tmp_path)
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("Min") == kinds.count("QuantizeLinear") == 3
    assert greatest_difference(net, tmp_path / "model.onnx") < 1e-5


def test_outputs_keep_their_names_and_inputs_go_by_keyword(written):
    net, folder, _ = written("tied")
    model = OnnxModel(folder / "model.onnx")
    ids, mask = net.inputs(3)
    outputs = model(input_ids=ids, mask=mask)
    assert list(outputs) == ["logits", "hidden"]
    assert outputs.logits.shape == (3, 7, 11)
    assert torch.equal(model(ids, mask=mask).logits, outputs["logits"])
    for args, kwargs in [((ids,), {}), ((ids, mask, mask), {}), ((ids, mask), {"mask": mask})]:
        with pytest.raises(TypeError, match=r"takes the tensors \(input_ids, mask\)"):
            model(*args, **kwargs)


@pytest.mark.slow
def test_a_fixed_batch_is_told(tmp_path):
    net = case("fixed", batch=5)
    assert write_onnx(net.model, tmp_path / "model.onnx") == 5


def test_a_missing_extra_is_named_with_the_command(tmp_path, no_onnx):
    with pytest.raises(ExportError, match=r'no_such_package; install .* `pip install "raysearch\[onnx\]"`'):
        OnnxModel(tmp_path / "model.onnx")


def test_notes_say_which_width_is_stored_wider():
    net = case("seven")
    notes = container_notes(stripped_weights(net.stripped, net.setup))
    text = "\n".join(notes)
    assert "uint8 at every width" in text
    assert "3-bit weights (1 of 7 tensors) are stored as INT4" in text
    assert "session.x64quantprecision" in text
    assert "5-bit weights (1 of 7 tensors) are stored as INT8" in text
    assert "4-bit" not in text
    assert "8-bit weights (" not in text
    assert "2-bit" not in text


@pytest.mark.slow
def test_an_operation_that_onnx_lacks_is_named_without_colours():
    model = orthogonal(torch.nn.Linear(4, 4)).eval()
    with pytest.raises(
        ExportError, match=r"ONNX has no operation for 'aten\.linalg_matrix_exp'\. Try"
    ) as told:
        capture(model, {}, (torch.randn(3, 4),))
    assert "\x1b" not in str(told.value)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_written_and_verified_in_float32(tmp_path, dtype):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
    model.append(torch.nn.Linear(144, 5)).to(dtype).eval()
    example = (torch.randn(8, 1, 8, 8).to(dtype),)
    setup = place_quantizers(model, example)
    table = calibrate_model(model, setup, [example], forward=forward_all)
    assignment = BitAssignment.extreme(setup, -1)
    stripped = create_controller(model, setup, table, assignment).strip_model()
    net = Case(stripped, setup, assignment, lambda n: (torch.randn(n, 1, 8, 8).to(dtype),), example)
    manifest = net.export(tmp_path, "packed", "onnx")
    assert manifest.checks[1].max_abs_difference < 1e-5
    assert any(f"the model, which is {dtype}, was verified in float32" in note for note in manifest.notes)
    with torch.no_grad():
        assert OnnxModel(tmp_path / "model.onnx")(*example).dtype == torch.float32
        assert stripped(*example).dtype == dtype
    verify_folder(tmp_path)


def test_codes_that_did_not_arrive_are_named():
    net = case("twins")
    weights = stripped_weights(net.stripped, net.setup)
    other = stripped_weights(case("seven").stripped, case("seven").setup)
    with pytest.raises(ExportError, match=r"the codes of 'layers\.0\.weight' did not reach the ONNX graph"):
        capture(net.stripped, {**weights, **other}, net.example)
