"""The target 'gguf': quantized language models, in llama.cpp."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import raysearch
from raysearch.config import load_config
from raysearch.errors import ConfigError, ExportError, PlacementError
from raysearch.export import TARGETS, check_targets
from raysearch.export.outputs import tensor_leaves
from raysearch.export.targets import ExportJob
from raysearch.pipeline.inputs import check_inputs
from raysearch.placement import place_quantizers
from raysearch.records import CostModel, Granularity, QuantizationPoint, QuantizerGroup, QuantizerSetup
from raysearch.records.block_types import BLOCK_TYPES
from tests.contracts.target_contract import Export, TargetContract
from tests.support.export_cases import Case, case, forward_all
from tests.support.gguf_models import build, save, stripped

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}


@pytest.mark.slow
@pytest.mark.process
class TestGgufTarget(TargetContract):
    target = TARGETS["gguf"]

    @classmethod
    def net(cls) -> Case:
        return stripped(build("qwen2"), "q4_0", "q8_0")

    def test_what_is_loaded_computes_what_the_stripped_module_computes(
        self, export: Export, loaded: nn.Module
    ) -> None:
        for reference in export.verification.references:
            (log_probabilities,) = tensor_leaves(loaded(*reference.batch))
            expected = reference.judged.log_softmax(-1)
            assert log_probabilities.shape == expected.shape
            assert (log_probabilities - expected).abs().mean() < 0.02

    def test_its_check_refuses_files_of_other_weights(self, export: Export, tmp_path: Path) -> None:
        model = replace(export.net.model, module=copy.deepcopy(export.net.stripped))
        for weight in model.weights.values():
            # Its types have no code for the negative of the least one.
            weight.codes.clamp_(min=-weight.codes.max()).neg_()
        self.target.write(ExportJob(model, tmp_path))
        with pytest.raises(ExportError, match=r"'gguf' differs from the stripped module .* explains"):
            self.target.check(tmp_path, export.verification)

    def test_widths_it_does_not_hold_are_refused_with_the_quantizers_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        narrow = copy.copy(self.target)
        vars(narrow)["capability"] = replace(self.target.capability, weights={8: 8})
        point = QuantizationPoint("fc.weight", "weight", (), (4, 256), Granularity.per_channel(0))
        group = QuantizerGroup("fc", ("fc.weight",), ("q3_k", "q8_0"))
        setup = QuantizerSetup({"fc.weight": point}, {"fc": group})
        check_targets(setup, ["gguf"])
        with pytest.raises(ConfigError, match=r"'gguf' does not hold 3 bits \(it holds 8\): 'fc.weight'"):
            check_targets(setup, ["gguf"], {"gguf": narrow})


@pytest.mark.slow
@pytest.mark.process
def test_a_type_for_each_tensor_arrives_bit_for_bit_and_llama_cpp_computes_with_it(tmp_path: Path) -> None:
    model = save(build("gemma3", **WIDE), tmp_path / "model", bytes_are_merged=False)
    net = stripped(model, *BLOCK_TYPES)
    folder = tmp_path / "out"
    manifest = net.export(folder, "gguf", "packed", batches=[net.inputs(3)], forward=forward_all)
    (check,) = [check for check in manifest.checks if check.target == "gguf"]
    # llama.cpp's kernels round what they multiply with to 8 bits.
    assert check.mean_abs_difference < 0.02
    assert check.agreement > 0.9
    assert check.num_samples == 3
    tensors = gguf.GGUFReader(folder / "model.gguf").tensors
    sizes = {tensor.tensor_type.name.lower(): 0 for tensor in tensors}
    for tensor in tensors:
        sizes[tensor.tensor_type.name.lower()] += tensor.n_bytes
    assert sizes.keys() == {*BLOCK_TYPES, "f32"}
    counted = CostModel(net.setup).weight_bytes(net.assignment)
    assert sum(sizes[name] for name in BLOCK_TYPES) == counted == manifest.weights_bytes
    size = (folder / "model.safetensors").stat().st_size
    assert size <= manifest.costs["size"] <= 1.02 * size


def test_a_model_it_does_not_know_is_told_before_its_weights_are_looked_at() -> None:
    model = nn.Linear(3, 2)
    task = raysearch.Task(model, (torch.zeros(1, 3),), calibration=[torch.zeros(1, 3)])
    config = load_config(overrides={"export": {"targets": ["gguf"]}, "placement": {"profile": "llama.cpp"}})
    with pytest.raises(ConfigError, match="writes causal language models of transformers, and Linear"):
        check_inputs(task, config, ["avg_bits<=4"])
    # Here its rows are too short for any type.
    config = load_config(overrides={"placement": {"profile": "llama.cpp"}})
    with pytest.raises(PlacementError, match=r"'weight' \(the profile 'llama\.cpp' takes rows of"):
        check_inputs(task, config, ["avg_bits<=4"])


def placed(**settings: object) -> QuantizerSetup:
    settings |= {"activation_bit_widths": []}
    config = load_config(overrides={"placement": settings}).placement
    return place_quantizers(build("llama"), (torch.zeros(1, 4, dtype=torch.long),), config)


def test_groups_of_32_with_scales_of_half_precision_are_types_too() -> None:
    setup = placed(weight_schemes=["4g32", "8g32"], scale_dtype="float16")
    check_targets(setup, ["gguf"])
    assert TARGETS["gguf"].capability.refusals(setup) == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight_schemes": ["4g32", "q8_0"]}, r"the scheme 4g32 \(it holds q2_k, q3_k"),
        ({"weight_schemes": ["q4_0", "4g32a"]}, "asymmetric weights"),
        ({"weight_bit_widths": [2, 4]}, "2 bits"),
    ],
)
def test_schemes_that_are_no_types_are_refused_before_the_search(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"'gguf' does not hold {words}"):
        check_targets(placed(**settings), ["gguf"])


def test_quantized_activations_are_refused_before_the_search() -> None:
    setup = case("twins", 6).setup
    refusals = TARGETS["gguf"].capability.refusals(setup)
    (words,) = [words for words in refusals if "activations" in words]
    assert words == "quantized activations"


def test_models_that_llama_cpp_does_not_run_are_refused_before_the_search() -> None:
    with pytest.raises(ConfigError, match="hidden_act = 'gelu'"):
        check_targets(placed(weight_schemes=["q8_0"]), ["gguf"], model=build("llama", hidden_act="gelu"))


def test_a_module_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="writes causal language models of transformers, and Twins"):
        case("twins", 6).export(tmp_path, "gguf")
