"""`size` against the file that the packed target writes."""

import pytest
import torch
from torch import nn

from raysearch.calibration import calibrate_model
from raysearch.config import PlacementConfig
from raysearch.controller import create_controller
from raysearch.errors import ExportError
from raysearch.export.targets.packed import write_packed
from raysearch.placement import place_quantizers
from raysearch.records import BitAssignment, CostModel, QuantizerSetup
from tests.support.export_cases import NETS, Case, case


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "text", "encoder", "seven", "twins"])
@pytest.mark.parametrize("bits", [2, 8])
def test_size_is_never_below_the_file_and_within_a_percent_of_it(tmp_path, name, bits):
    net = case(name, bits)
    write_packed(net.stripped, net.setup, net.example, tmp_path)
    found = (tmp_path / "model.safetensors").stat().st_size
    assert found <= CostModel(net.setup).costs(net.assignment)["size"] <= 1.01 * found


@pytest.mark.slow
def test_size_is_exact_where_a_weight_stays_float(tmp_path):
    net = case("residual", left_out=("stem.weight",))
    write_packed(net.stripped, net.setup, net.example, tmp_path)
    found = (tmp_path / "model.safetensors").stat().st_size
    assert CostModel(net.setup).costs(net.assignment)["size"] == found


def test_a_hundred_percent_is_the_float_models_file(tmp_path):
    from safetensors.torch import save_model

    model = NETS["seven"][0]().eval()
    setup = place_quantizers(model, NETS["seven"][1](2))
    save_model(model, str(tmp_path / "float.safetensors"), metadata={"format": "pt"})
    assert CostModel(setup).reference["size"] == (tmp_path / "float.safetensors").stat().st_size


def test_what_is_stored_survives_the_setups_json():
    setup = case("encoder").setup
    assert QuantizerSetup.from_json(setup.to_json()) == setup
    assert setup.stored


def test_a_file_larger_than_its_size_is_refused(tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    example = (torch.randn(2, 4),)
    setup = place_quantizers(model, example, PlacementConfig(weight_bit_widths=(4,)))
    table = calibrate_model(model, setup, example, forward=lambda m, batch: m(batch))
    controller = create_controller(model, setup, table, BitAssignment.extreme(setup, 0))
    stripped = controller.strip_model()
    stripped.register_buffer("extra", torch.zeros(50))
    with pytest.raises(ExportError, match=r"more than the \d+ that the search counted"):
        Case(stripped, setup, controller.assignment, None, example).export(tmp_path, "packed")
