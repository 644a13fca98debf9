"""The auto-round target: zero points in a directory of transformers, on the CPU by torch."""

import json

import pytest
import torch
from safetensors.torch import load_file

from raysearch.config import PlacementConfig
from raysearch.errors import ConfigError
from raysearch.export import TARGETS, check_targets
from raysearch.placement import place_quantizers
from tests.support.export_cases import forward_all
from tests.support.pretrained_cases import ASYMMETRIC, EMBEDDING, pretrained_case, tiny_llama, token_ids

TARGET = TARGETS["auto-round"]
# Not `importorskip`: to import it starts processes.
pytestmark = pytest.mark.skipif(bool(TARGET.extra.missing()), reason="its extra is not installed")


@pytest.mark.slow
@pytest.mark.process
def test_schemes_with_and_without_zero_points_are_run_by_auto_round(tmp_path):
    net = pretrained_case(ASYMMETRIC, "float16")
    manifest = net.export(tmp_path, "auto-round", batches=[net.inputs(3)], forward=forward_all)
    (check,) = manifest.checks
    assert check.runtime.startswith("transformers ")
    assert check.max_abs_difference < 2e-3
    assert {file.path for file in manifest.files} == {
        f"auto-round/{name}" for name in ("config.json", "generation_config.json", "model.safetensors")
    }
    config = json.loads((tmp_path / "auto-round" / "config.json").read_text())["quantization_config"]
    tensors = load_file(tmp_path / "auto-round" / "model.safetensors")
    float_layer = "model.layers.1.mlp.down_proj"
    assert config["extra_config"][float_layer]["bits"] == 16
    assert tensors[f"{float_layer}.weight"].dtype == torch.float32
    for name, weight in net.model.weights.items():
        entry = config["extra_config"][name.removesuffix(".weight")]
        size = weight.granularity.group_size
        assert entry == {"bits": weight.num_bits, "group_size": size or -1, "sym": weight.symmetric}
        num_rows, length = weight.codes.shape
        prefix = name.removesuffix("weight")
        assert tensors[f"{prefix}qweight"].shape == (length * weight.num_bits // 32, num_rows)
        groups = length // (size or length)
        assert tensors[f"{prefix}qzeros"].shape == (groups, num_rows * weight.num_bits // 32)
        scales = tensors[f"{prefix}scales"]
        assert torch.equal(scales.float().T.reshape(-1), weight.scale.reshape(-1))


@pytest.mark.slow
def test_what_it_does_not_hold_is_refused_before_the_search():
    settings = {"activation_bit_widths": (), "ignored_scopes": (EMBEDDING,)}

    def place(model, **more):
        return place_quantizers(model, token_ids(2), PlacementConfig(**{**settings, **more}))

    model = tiny_llama()
    with pytest.raises(ConfigError, match=r"scales of float32 \(set placement\.scale_dtype to 'float16'\)"):
        check_targets(place(model), ["auto-round"], model=model)
    check_targets(place(model, scale_dtype="float16"), ["auto-round"], model=model)
    narrow = tiny_llama(vocab_size=130)
    with pytest.raises(ConfigError, match=r"no multiple of 32: 'lm_head\.weight'"):
        check_targets(place(narrow, scale_dtype="float16"), ["auto-round"], model=narrow)
