"""The network is drawn from its inputs down, with a rail for each result that is still to be read."""

import re
from dataclasses import replace

import numpy as np
import pytest

from raysearch.records import BitAssignment, NetworkNode
from raysearch.reporting import render_report
from raysearch.reporting.interactions import MOST_GROUPS, interaction_data, pair_shares, pairs_grid
from raysearch.reporting.network import draw_network
from raysearch.reporting.page import lanes_of
from tests.support.run_records import make_report_records, make_sensitivity, make_setup


def drawn(*nodes):
    return draw_network(replace(make_setup(1), network=nodes), [])


def test_a_residual_connection_has_a_rail_of_its_own():
    drawing = drawn(
        NetworkNode("x", "input"),
        NetworkNode("a", "layer", (), (0,)),
        NetworkNode("b", "layer", (), (1,)),
        NetworkNode("block", "add", (), (1, 2)),
        NetworkNode("c", "layer", (), (3,)),
    )
    assert [node.column for node in drawing.nodes] == [0, 0, 1, 0, 0]
    assert [node.label for node in drawing.nodes] == ["input x", "a", "b", "add block", "c"]
    # Down, to b and past it, from both into the addition, down.
    assert re.findall("[VC]", drawing.path) == ["V", "C", "V", "V", "C", "V"]
    assert (drawing.num_columns, drawing.width, drawing.height) == (2, 28, 110)


def test_branches_lie_side_by_side_and_rails_are_taken_again():
    drawing = drawn(
        NetworkNode("x", "input"),
        *(NetworkNode(name, "layer", (), (0,)) for name in "qkv"),
        NetworkNode("", "attention", (), (1, 2, 3)),
        NetworkNode("out", "layer", (), (4,)),
    )
    columns = {node.label: node.column for node in drawing.nodes}
    assert len({columns[name] for name in "qkv"}) == 3
    assert columns["attention"] == columns["out"] == 0


def test_an_input_that_no_layer_reads_is_not_drawn_and_an_old_run_has_no_network():
    records = make_report_records()
    drawing = draw_network(records.setup, lanes_of(records))
    assert "input mask" not in [node.label for node in drawing.nodes]
    old = replace(records, setup=replace(records.setup, network=()))
    assert "<h3>Network</h3>" in render_report(records)
    assert "<h3>Network</h3>" not in render_report(old)


def test_shares_of_pairs_add_up_to_the_whole_prediction():
    setup = make_setup(3)
    table = make_sensitivity(setup)
    assignment = BitAssignment({group.id: group.bit_widths[0] for group in setup.groups.values()})
    shares = pair_shares(table, assignment).shares
    assert np.triu(shares).sum() == pytest.approx(1)
    index = {option: row for row, option in enumerate(table.effects)}
    names = list(assignment.schemes)
    one, other = (index[name, assignment.schemes[name]] for name in names[:2])
    total = table.gram[np.ix_(*[[index[option] for option in assignment.schemes.items()]] * 2)].sum() / 2
    assert shares[0, 1] == pytest.approx(table.gram[one, other] / total)
    first = pairs_grid(table, assignment).rows[0]
    strongest = np.abs(np.triu(shares, 1)).argmax()
    row, column = divmod(int(strongest), len(names))
    assert (first.name, first.cells[0]) == (names[row], names[column])


def test_of_very_many_groups_those_that_cost_most_are_paired_and_the_page_says_so(monkeypatch):
    setup = make_setup(3)
    records = make_report_records()
    assignment = BitAssignment({group.id: group.bit_widths[0] for group in setup.groups.values()})
    table = make_sensitivity(setup)
    every = pair_shares(table, assignment)
    monkeypatch.setattr("raysearch.reporting.interactions.MOST_PAIRED", 3)
    pairs = pair_shares(table, assignment)
    places = [every.groups.index(name) for name in pairs.groups]
    own = np.diag(every.shares)
    assert sorted(own[places]) == sorted(own)[-3:]
    assert pairs.shares == pytest.approx(every.shares[np.ix_(places, places)], rel=1e-12)
    assert re.search(r"Of the 3 of \d+ groups whose own error costs most", render_report(records))
    assert len(pairs_grid(table, assignment).rows) == 3


def test_a_large_map_shows_the_groups_that_count():
    setup = make_setup(60)
    assignment = BitAssignment({group.id: group.bit_widths[0] for group in setup.groups.values()})
    data = interaction_data(make_sensitivity(setup), assignment)
    assert (len(data["groups"]), data["num_groups"]) == (MOST_GROUPS, 120)
    assert {len(row) for row in data["shares"]} == {MOST_GROUPS}
