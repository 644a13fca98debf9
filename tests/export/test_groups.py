"""Weights with scales per group in the packed folder: bit for bit, of the counted size, damage refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from raysearch.controller import create_controller, stripped_weights
from raysearch.errors import StorageError
from raysearch.export.load import load_model
from raysearch.export.targets.packed import write_packed
from raysearch.placement import place_quantizers
from raysearch.records import (
    BitAssignment,
    CostModel,
    Granularity,
    QuantizerRange,
    QuantizerSpec,
    RangeTable,
    Scheme,
)
from tests.support.export_cases import forward_all
from tests.support.grouped_cases import GROUPED_NETS, grouped


@pytest.fixture(scope="module")
def rows():
    return grouped("rows", None, 32, asymmetric=True)


@pytest.fixture
def folder(rows, tmp_path):
    write_packed(rows.stripped, rows.setup, rows.example, tmp_path)
    return tmp_path


def test_the_file_is_of_the_size_that_the_search_counts(rows, folder):
    size = (folder / "model.safetensors").stat().st_size
    assert size <= CostModel(rows.setup).costs(rows.assignment)["size"] <= size + 64
    stored = load_file(folder / "model.safetensors")
    # 64 inputs of a row in two groups of 32, 32 · 3 of a kernel's channels in groups of 8 · 3.
    assert stored["first.weight.scale"].shape == stored["first.weight.zero_point"].shape == (48 * 2,)
    assert stored["conv.weight.scale"].shape == (16 * 4,)
    assert stored["first.weight.zero_point"].dtype == torch.int8


def test_config_tells_the_groups(rows, folder):
    weights = json.loads((folder / "config.json").read_text())["quantization_config"]["weights"]
    granularity = rows.setup.points["conv.weight"].granularity
    entry = weights["conv.weight"]
    assert (entry["axis"], entry["group_axis"], entry["group_size"]) == (0, 1, granularity.group_size)
    assert entry["scheme"] == f"{entry['bits']}g24a"
    assert weights["up.weight"]["group_axis"] == 0


def test_a_factory_s_network_takes_them(rows, folder):
    model = load_model(folder, GROUPED_NETS["rows"][0])
    inputs = rows.inputs(3)
    with torch.no_grad():
        assert torch.equal(model(*inputs), rows.stripped(*inputs))


@pytest.mark.parametrize("part", ["scale", "zero_point"])
def test_a_wrong_number_of_scales_is_refused_by_name(folder, part):
    stored = load_file(folder / "model.safetensors")
    name = f"first.weight.{part}"
    stored[name] = stored[name][:48].clone()
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(StorageError, match=rf"'{name}' is .* of shape \[48\], but .* shape \[96\]"):
        load_model(folder)


def test_another_group_size_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["weights"]["first.weight"]["group_size"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StorageError, match=r"'first\.weight\.scale' is .* of shape \[96\], but .* \[384\]"):
        load_model(folder)


@pytest.mark.slow
def test_only_a_folder_with_groups_is_of_the_second_version(tmp_path):
    net = grouped("twins", 4, 1)  # rows of 6 in groups of 1
    write_packed(net.stripped, net.setup, net.example, tmp_path / "new")
    plain = grouped("twins", 4, 0)
    write_packed(plain.stripped, plain.setup, plain.example, tmp_path / "old")
    for folder, version in (("new", 2), ("old", 1)):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert config["quantization_config"]["version"] == version


@st.composite
def matrices(draw):
    bits = draw(st.integers(2, 8))
    shape = (draw(st.integers(1, 4)), draw(st.integers(2, 9)))
    size = draw(st.integers(1, shape[1]))  # also one that leaves a shorter last group
    return bits, shape, size, draw(st.booleans()), draw(st.integers(0, 2**32 - 1))


@pytest.mark.slow
@given(matrices())
@settings(max_examples=12, deadline=None)
def test_packed_groups_read_back_bit_for_bit(tmp_path_factory, matrix):
    bits, shape, size, asymmetric, seed = matrix
    rng = np.random.default_rng(seed)
    model = nn.Sequential(nn.Linear(shape[1], shape[0])).eval()
    example = (torch.randn(2, shape[1]),)
    setup = place_quantizers(model, example)
    granularity, spec = Granularity.per_group(size), None
    if asymmetric:
        spec = QuantizerSpec("asymmetric")
    point = replace(setup.points["0.weight"], granularity=granularity, spec=spec)
    setup = replace(setup, points={**setup.points, point.id: point})
    zeros = np.zeros(point.num_scales, np.int32)
    if asymmetric:
        zeros = rng.integers(0, 2**bits, point.num_scales).astype(np.int32)
    scales = rng.uniform(0.01, 1, point.num_scales).astype(np.float32)
    table = RangeTable({(point.id, bits): QuantizerRange(scales, zeros, not asymmetric)})
    groups = {g: replace(group, schemes=(Scheme(bits),)) for g, group in setup.groups.items()}
    setup = replace(setup, groups=groups)
    stripped = create_controller(model, setup, table, BitAssignment({point.id: bits})).strip_model()
    folder = tmp_path_factory.mktemp("matrix")
    write_packed(stripped, setup, example, folder)
    loaded = load_model(folder)
    weight = stripped_weights(stripped, setup)[point.id]
    assert weight.scale.numel() == shape[0] * -(-shape[1] // size)
    assert torch.equal(loaded.tensors.get_buffer("0.weight.codes"), weight.codes)
    assert torch.equal(forward_all(loaded, example), forward_all(stripped, example))
