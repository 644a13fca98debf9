"""What `raysearch inspect` shows: grids, pairs, and what stays float."""

import io
import json
import re

import pytest
import torch
from rich.console import Console
from torch import nn

from raysearch.cli.console import fused_grid, inspection, layers_grid, out, show_grid
from raysearch.config import PlacementConfig
from raysearch.placement import place_quantizers
from raysearch.records import (
    CostModel,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    RunResult,
    Site,
    packed_bytes,
)
from raysearch.records.costs.text import cost
from raysearch.reporting import ReportRecords, render_report
from raysearch.reporting.grids import summary_grid
from tests.support.run_records import make_result, make_search, make_setup


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.hidden = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.lstm(x)[0][:, -1])))


@pytest.fixture
def setup(tmp_path):
    profile = tmp_path / "profile.toml"
    profile.write_text(
        "[default]\nweights = [4, 8]\nactivations = [4, 8]\npairs = [[4, 4], [4, 8], [8, 8]]\n"
        'weight_granularity = ["per_channel", "per_tensor"]\nweight_modes = ["symmetric", "asymmetric"]\n'
        'activation_modes = ["asymmetric"]\n'
    )
    return place_quantizers(
        Recurrent(),
        (torch.randn(2, 3, 4),),
        PlacementConfig(
            weight_bit_widths=(4, 8),
            activation_bit_widths=(4, 8),
            ignored_scopes=("lstm.weight_hh_*",),
            overrides={"head": {"mode": "asymmetric", "granularity": "per_tensor"}},
            profile=str(profile),
        ),
    )


def test_inspect_shows_grids_pairs_and_what_stays_float(setup):
    stream = io.StringIO()
    show_grid(Console(file=stream, width=220), layers_grid(setup), wide=True)
    lines = {line.split(" ")[0]: line for line in stream.getvalue().splitlines()}
    assert "symmetric signed, per channel 0" in lines["hidden.weight"]
    assert "asymmetric, per tensor" in lines["head.weight"]
    assert "4/4 4/8 8/8" in lines["hidden.weight"]
    assert "float" in lines["lstm.weight_hh_l0"]
    facts = inspection(setup, CostModel(setup), {})
    assert "left out by placement.target_scopes or ignored_scopes" in lines["lstm.weight_hh_l0"]
    # 80 of the LSTM, 25 and 10 of the others can be quantized; 100 cannot.
    assert "53.5% of the weights (115 of 215)" in stream.getvalue()
    assert (facts["coverage"]["quantizable"], facts["coverage"]["weights"]) == (115, 215)
    assert [weight["name"] for weight in facts["coverage"]["floating"]] == ["lstm.weight_hh_l0"]
    head = facts["groups"]["head.weight"]
    assert (head["mode"], head["axis"], head["pairs"]) == ("asymmetric", None, [(4, 4), (4, 8), (8, 8)])


def test_the_terminal_and_the_page_print_a_cost_the_same_way():
    setup = make_setup(4, "blocks.{}.linear")
    result = make_result(setup, make_search(setup, 12))
    stream = io.StringIO()
    show_grid(Console(file=stream, width=200), summary_grid(setup, result))
    page = render_report(ReportRecords("r", setup, result, search=make_search(setup, 12)))
    for kind, value in result.costs.items():
        assert cost(kind, value) in stream.getvalue()
        assert cost(kind, value) in page


def test_what_was_judged_on_test_data_is_shown_with_its_standard_errors():
    setup = make_setup(4)
    search = make_search(setup, 12)
    result = make_result(
        setup,
        search,
        test_metrics={"float": {"perplexity": 22.4}, "quantized": {"perplexity": 24.75, "divergence": 0.11}},
        standard_errors={"quantized": {"loss": 0.01}, "test_quantized": {"perplexity": 0.3123}},
    )
    assert RunResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    stream = io.StringIO()
    show_grid(Console(file=stream, width=200), summary_grid(setup, result))
    lines = [re.split(r"  +", line) for line in stream.getvalue().splitlines()]
    rows = {cells[0]: cells[1:3] for cells in lines}
    assert rows["loss"] == ["0.1534", "0.1601 ± 0.01"]
    assert rows["test perplexity"] == ["22.4", "24.75 ± 0.31"]
    assert rows["test divergence"] == ["–", "0.11"]
    page = render_report(ReportRecords("r", setup, result, search=search))
    assert "test perplexity" in page


def test_a_setup_remembers_what_stays_float(setup):
    assert QuantizerSetup.from_json(setup.to_json()) == setup
    # One byte a zero point: 10 codes of 4 bits, one scale, one zero point.
    (weight,) = (p for p in setup.points.values() if p.id == "head.weight")
    assert weight.num_zero_points == 1
    assert packed_bytes(weight, 4) == 5 + 4 + 1


def test_what_a_runtime_makes_one_is_named_with_the_reason(setup):
    assert fused_grid(setup) is None
    names = ("blocks.0.q.weight", "blocks.0.kv.a.weight")
    points = {name: QuantizationPoint(name, "weight", (Site(name, "parameter"),), (2, 2)) for name in names}
    groups = {names[0]: QuantizerGroup(names[0], names, (4, 8), "they meet")}
    (row,) = fused_grid(QuantizerSetup(points, groups)).rows
    assert (row.name, row.cells) == ("blocks.0", ("q, kv.a", "they meet"))


def test_a_path_is_printed_as_it_is(capsys):
    path = "/runs/[old]/" + "long/" * 40
    out().print(path)
    assert capsys.readouterr().out == f"{path}\n"
