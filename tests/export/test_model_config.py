import json
from dataclasses import replace

import pytest

from raysearch.errors import StorageError
from raysearch.export.model_config import (
    VERSION,
    ActivationQuantizer,
    ModelConfig,
    PackedWeight,
    TensorSpec,
)
from raysearch.records import Granularity


@pytest.fixture
def config():
    return ModelConfig(
        "Net",
        ("x", "mask"),
        None,
        {"a.weight": PackedWeight(3, Granularity(1), (4, 2, 3), ("b.weight",))},
        {"a.input": ActivationQuantizer(8, 0.25, 128)},
        {"a.bias": TensorSpec((2,), "F32")},
    )


def test_json_round_trip(config):
    assert ModelConfig.from_json(config.to_json()) == config
    half = replace(config, weights={"a.weight": PackedWeight(3, Granularity(1), (4, 2, 3), dtype="F16")})
    assert ModelConfig.from_json(half.to_json()) == half
    scales = PackedWeight(3, Granularity(1), (4, 2, 3), scale_format="bfloat16")
    stored = replace(config, weights={"a.weight": scales})
    assert ModelConfig.from_json(stored.to_json()) == stored
    assert json.loads(stored.to_json())["quantization_config"]["version"] == 3
    channels = ActivationQuantizer(4, (0.5, 0.25), (3, 4), shape=(2, 5), axis=0)
    other = replace(config, activations={"a.input": channels, "b.input": ActivationQuantizer(None, 1.0, 0)})
    assert ModelConfig.from_json(other.to_json()) == other


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), "1", True, [0.5, 0.0]])
def test_a_step_that_is_not_positive_is_refused(config, scale):
    data = json.loads(config.to_json())
    data["quantization_config"]["activations"]["a.input"]["scale"] = scale
    with pytest.raises(StorageError, match=r"no step of a grid|no number of float32"):
        ModelConfig.from_json(json.dumps(data))


def test_the_quantization_config_is_laid_out_as_documented(config):
    data = json.loads(config.to_json())["quantization_config"]
    assert (data["quant_method"], data["format"], data["version"]) == ("raysearch", "bitstream-le", 1)
    assert data["weights"]["a.weight"] == {
        "bits": 3, "axis": 1, "shape": [4, 2, 3], "aliases": ["b.weight"], "zero_point": 0,
    }  # fmt: skip
    assert data["activations"]["a.input"] == {"bits": 8, "scale": 0.25, "zero_point": 128}


def test_groups_are_told_with_their_scheme_and_in_a_version_of_their_own(config):
    groups = PackedWeight(3, Granularity.per_group(2), (5, 4, 3, 3), zero_point="stored")
    other = replace(config, weights={"a.weight": groups})
    text = other.to_json()
    assert ModelConfig.from_json(text) == other
    assert groups.scale_shape == (5, 2, 1, 1)
    data = json.loads(text)["quantization_config"]
    assert data["version"] == 2
    assert data["weights"]["a.weight"] | {"axis": 0} == {
        "bits": 3, "axis": 0, "shape": [5, 4, 3, 3], "aliases": [], "zero_point": "stored",
        "group_axis": 1, "group_size": 2, "scheme": "3g18a",
    }  # fmt: skip


def test_a_scale_broadcasts_along_the_axis(config):
    assert config.weights["a.weight"].scale_shape == (1, 2, 1)
    assert config.weights["a.weight"].num_codes == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "'a.weight' has 9 bits"),
        ({"bits": True}, "no non-negative integer"),
        ({"axis": 3}, "has axis 3"),
        ({"group_axis": 5, "group_size": 2}, "has axis 5"),
        ({"group_axis": 0}, "go together"),
        ({"group_axis": 0, "group_size": 0}, "size of at least 1"),
        ({"shape": [4, -2, 3]}, "-2 is no"),
        ({"shape": [4, 2.0, 3]}, "2.0 is no"),
        ({"axis": -1}, "-1 is no"),
        ({"scale_format": "int8"}, "has scales of 'int8'; allowed: float32, float16, bfloat16"),
        ({"dtype": "I8"}, "has dtype 'I8'; allowed: F64, F32, F16, BF16"),
        ({"zero_point": -5}, "has zero_point -5"),
        ({"zero_point": 1}, "no non-negative"),
    ],
)
def test_impossible_weights_are_refused(config, change, message):
    data = json.loads(config.to_json())
    data["quantization_config"]["weights"]["a.weight"].update(change)
    with pytest.raises(StorageError, match=message):
        ModelConfig.from_json(json.dumps(data))


def test_another_format_and_a_newer_version_are_refused(config):
    data = json.loads(config.to_json())
    data["quantization_config"]["version"] = VERSION + 1
    with pytest.raises(StorageError, match="has schema version 5; this raysearch reads up to 4"):
        ModelConfig.from_json(json.dumps(data))
    data["quantization_config"]["quant_method"] = "gptq"
    with pytest.raises(StorageError, match="quant_method 'gptq'"):
        ModelConfig.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"quantization_config": 3}'])
def test_damaged_text_is_refused(text):
    with pytest.raises(StorageError, match=r"config\.json is damaged"):
        ModelConfig.from_json(text)
