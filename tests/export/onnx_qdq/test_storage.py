import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from raysearch.export.onnx_qdq.storage import (
    DOMAIN,
    STREAM_WIDTHS,
    Container,
    _decoder,
    choose_containers,
    code_width,
)
from raysearch.export.packing import pack_codes


@pytest.mark.parametrize(("low", "high", "bits"), [(0, 0, 1), (-1, 0, 1), (-2, 1, 2), (-8, 7, 4), (-8, 8, 5)])
def test_a_width_is_read_off_the_codes(low, high, bits):
    assert code_width(np.array([low, high], np.int8)) == bits


@pytest.mark.parametrize("bits", STREAM_WIDTHS)
@pytest.mark.parametrize("count", [1, 8, 29])
def test_the_decoder_gives_every_code_times_the_factor(bits, count):
    low = -(2 ** (bits - 1))
    codes = np.random.default_rng(0).integers(low, -low, count).astype(np.int8)
    codes[0], codes[-1] = low, -low - 1
    shift = max(0, 7 - bits)
    stream = np.zeros(-(-count // 8) * bits, np.uint8)
    packed = pack_codes(codes, bits, "w")
    stream[: packed.size] = packed
    node = helper.make_node(
        f"Decode{bits}", ["stream", "factor"], ["codes"], domain=DOMAIN, count=[count], shape=[count, 1]
    )
    graph = helper.make_graph(
        [node],
        "decode",
        [helper.make_tensor_value_info("stream", TensorProto.UINT8, [None, bits])],
        [helper.make_tensor_value_info("codes", TensorProto.INT8, [count, 1])],
        [onnx.numpy_helper.from_array(np.array(2**shift, np.int32), "factor")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, functions=[_decoder(bits, 21)], opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"stream": stream.reshape(-1, bits)})
    assert found.dtype == np.int8
    assert np.array_equal(found[:, 0], codes.astype(np.int16) << shift)


def test_containers_are_chosen_by_bytes():
    large = {"two": (50_000, 2), "three": (50_000, 3), "four": (50_000, 4), "seven": (50_000, 7)}
    small = {"odd": (400, 3), "five": (100, 5)}
    found = choose_containers({**large, **small})
    assert [found[name] for name in large] == [
        Container("INT2", 2), Container("bits", 3), Container("INT4", 4), Container("bits", 7),
    ]  # fmt: skip
    assert [found[name] for name in small] == [Container("INT4", 4), Container("INT8", 8)]
    # Alone, a layer must also pay for the function that decodes it.
    assert choose_containers({"a": (4_000, 3)})["a"] == Container("INT4", 4)
    assert set(choose_containers(large, streams=False).values()) == {
        Container("INT4", 4), Container("INT8", 8)
    }  # fmt: skip
