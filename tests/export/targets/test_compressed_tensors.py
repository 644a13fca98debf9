"""The compressed-tensors target: directories of transformers, written by hand and read by their own class."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from raysearch.config import PlacementConfig
from raysearch.errors import ConfigError, ExportError
from raysearch.export import TARGETS, check_targets
from raysearch.export.pretrained.directory import float_tensors
from raysearch.export.targets import ExportJob
from raysearch.placement import place_quantizers
from raysearch.records import Granularity, QuantizationPoint, QuantizerSpec
from tests.contracts.target_contract import TargetContract
from tests.support.pretrained_cases import EMBEDDING, SYMMETRIC, pretrained_case, tiny_llama, token_ids

TARGET = TARGETS["compressed-tensors"]
# Not `importorskip`: to import it starts processes.
pytestmark = pytest.mark.skipif(bool(TARGET.extra.missing()), reason="its extra is not installed")


@pytest.mark.slow
@pytest.mark.process
class TestCompressedTensorsTarget(TargetContract):
    target = TARGET

    @classmethod
    def net(cls):
        return pretrained_case(SYMMETRIC, "model")

    def test_its_check_passes_and_names_the_target_and_the_runtime(self, export, loaded, monkeypatch):
        monkeypatch.setattr(type(TARGET), "load", lambda target, folder: loaded)
        super().test_its_check_passes_and_names_the_target_and_the_runtime(export)
        (check,) = TARGET.check(export.folder, export.verification).checks
        assert check.runtime.startswith("transformers ")
        assert check.max_abs_difference == 0.0

    def test_a_call_that_fails_is_told_and_the_next_one_runs(self, export, loaded):
        with pytest.raises(ExportError, match="IndexError: index out of range"):
            loaded(torch.full((1, 3), 500))
        outputs = loaded(input_ids=token_ids(1)[0])
        assert outputs.logits.shape == (1, 7, 128)
        assert list(outputs) == ["logits"]

    def test_modules_are_named_exactly_and_rows_are_whole_words(self, export):
        folder = export.folder / TARGET.folder
        config = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
        quantization = config["quantization_config"]
        assert config["architectures"] == ["LlamaForCausalLM"]
        assert config["dtype"] == "float32"
        assert quantization["ignore"] == ["model.layers.1.mlp.down_proj"]
        named = {}
        for group in quantization["config_groups"].values():
            assert set(group) == {"targets", "weights", "input_activations", "output_activations", "format"}
            named |= dict.fromkeys(group["targets"], group["weights"])
        weights = export.net.model.weights
        assert set(named) == {name.removesuffix(".weight") for name in weights}
        for name, weight in weights.items():
            scheme = named[name.removesuffix(".weight")]
            assert scheme["num_bits"] == weight.num_bits
            assert scheme["group_size"] == weight.granularity.group_size
            num_rows, length = weight.codes.shape
            prefix = name.removesuffix("weight")
            words = tensors[f"{prefix}weight_packed"]
            assert words.dtype == torch.int32
            assert words.shape == (num_rows, -(-length * weight.num_bits // 32))
            assert tensors[f"{prefix}weight_shape"].tolist() == [num_rows, length]
            assert name not in tensors
        assert "model.layers.1.mlp.down_proj.weight" in tensors
        assert "model.layers.0.self_attn.q_proj.bias" in tensors


def place(model, **settings):
    settings = {"activation_bit_widths": (), "ignored_scopes": (EMBEDDING,), **settings}
    return place_quantizers(model, token_ids(2), PlacementConfig(**settings))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"weight_schemes": ("4g32", "4g32a")},
            r"asymmetric weights .*: 'model\.layers\.0",
        ),
        ({"activation_bit_widths": (8,)}, r"quantized activations: 'model\.layers\.0"),
        ({"ignored_scopes": ()}, r"quantized weights of Embedding .*: 'model\.embed_tokens\.weight'"),
        ({"overrides": {"lm_head": {"granularity": "per_tensor"}}}, r"per_tensor scales .*'lm_head\.weight'"),
    ],
)
def test_what_it_does_not_hold_is_refused_before_the_search(settings, text):
    model = tiny_llama()
    with pytest.raises(ConfigError, match=f"'compressed-tensors' does not hold {text}"):
        check_targets(place(model, **settings), ["compressed-tensors"], model=model)


@pytest.mark.slow
def test_tied_heads_other_models_and_scales_of_another_type_are_refused_before_the_search():
    tied = tiny_llama(tie_word_embeddings=True)
    with pytest.raises(ConfigError, match=r"several modules share.*'model\.embed_tokens\.weight'"):
        check_targets(place(tied, ignored_scopes=()), [TARGET.name], model=tied)
    check_targets(place(tied), [TARGET.name], model=tied)
    half = tiny_llama(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"scales of float32 in a bfloat16 model \(set placement"):
        check_targets(place(half), [TARGET.name], model=half)
    check_targets(place(half, scale_dtype="model"), [TARGET.name], model=half)
    plain = nn.Sequential(nn.Linear(4, 4))
    setup = place_quantizers(plain, (torch.zeros(2, 4),), PlacementConfig(activation_bit_widths=()))
    with pytest.raises(ConfigError, match="no PreTrainedModel of transformers: 'Sequential'"):
        check_targets(setup, [TARGET.name], model=plain)
    nested = nn.Sequential(nn.Conv1d(2, 2, 1))
    setup = place_quantizers(nested, (torch.zeros(2, 2, 4),), PlacementConfig(activation_bit_widths=()))
    with pytest.raises(ConfigError, match=r"no PreTrainedModel"):
        check_targets(setup, [TARGET.name], model=nested)
    assert r"quantized weights of Conv1d (it holds those of Linear)" in TARGET.refusals(setup, nested)


def test_weights_made_by_hand_are_refused_by_what_they_are():
    """Placement makes no such points; a controller's user may."""

    def words(granularity, spec=None):
        point = QuantizationPoint("fc.weight", "weight", (), (4, 10), granularity, spec=spec)
        return TARGET.refusal(point, torch.float32)

    assert words(Granularity.per_channel(0)) == ""
    assert words(Granularity.per_channel(1)) == "scales per channel of axis 1"
    assert words(Granularity.per_group(4)) == "groups of 4 that do not divide 10 inputs"
    unsigned = QuantizerSpec("symmetric", signed=False)
    assert "may have no sign" in words(Granularity.per_channel(0), unsigned)


def test_only_the_chosen_schemes_count_when_it_is_written(tmp_path):
    net = pretrained_case(["4g32", "4g32a"], "model")
    with pytest.raises(ExportError, match=r"'compressed-tensors' does not hold asymmetric weights"):
        TARGET.write(ExportJob(net.model, tmp_path))
    others = pretrained_case(["4g32", "8"], "model", also=["4g32a"])
    (note,) = TARGET.write(ExportJob(others.model, tmp_path)).notes
    assert note == "compressed-tensors: no tokenizer was copied: the model came from no local directory."


def test_tied_tensors_are_saved_once_and_quantizers_not_at_all():
    tied = tiny_llama(tie_word_embeddings=True)
    tensors = float_tensors(tied)
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" not in tensors
    assert set(tied.state_dict()) - set(tensors) == {"lm_head.weight"}
