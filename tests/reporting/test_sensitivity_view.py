from dataclasses import replace

import numpy as np
import pytest

from raysearch.records import BitAssignment
from raysearch.reporting import predicted_shares, sensitivity_grid, sensitivity_rows, sketch_note
from tests.support.run_records import make_sensitivity, make_setup


def test_shares_are_parts_of_the_quadratic_form():
    setup = make_setup(3)
    table = make_sensitivity(setup)
    assignment = BitAssignment.extreme(setup, 0)
    chosen = np.array([assignment.schemes[group] == scheme for group, scheme in table.effects], dtype=float)
    total = chosen @ table.gram @ chosen
    shares = predicted_shares(table, assignment)
    assert sum(shares.values()) == pytest.approx(1)
    for group, share in shares.items():
        own = np.array([g == group for g, _ in table.effects], dtype=float) * chosen
        assert share == pytest.approx(own @ table.gram @ chosen / total)


def test_shares_of_groups_that_interact_with_nothing():
    setup = make_setup(2)
    table = make_sensitivity(setup)
    size = len(table.effects)
    table = type(table)(table.traces, table.effects, np.zeros((size, size)), "")
    assert set(predicted_shares(table, BitAssignment.extreme(setup, 0)).values()) == {0.0}


def test_a_row_a_group_with_all_its_widths():
    setup = make_setup(3)
    table = make_sensitivity(setup)
    rows = {row["group"]: row for row in sensitivity_rows(setup, table)}
    assert list(rows) == list(setup.groups)
    weight = rows["blocks.1.linear.weight"]
    assert list(weight["widths"]) == ["2", "3", "4", "8"]
    assert weight["traces"][0]["value"] == table.traces["blocks.1.linear.weight"].value
    norm = weight["widths"]["3"]["response_norm"]
    assert norm**2 / 2 == pytest.approx(table.effects["blocks.1.linear.weight", 3].response)
    assert "share" not in weight
    assert rows["blocks.1.linear.input"]["traces"] == []


def test_the_table_has_a_cell_for_every_column():
    setup = make_setup(3)
    table = make_sensitivity(setup)
    chosen = {g.id: g.bit_widths[-1] for g in setup.groups.values() if g.id != "blocks.1.linear.input"}
    for assignment in (None, BitAssignment(chosen)):
        grid = sensitivity_grid(setup, table, assignment)
        assert {len(row.cells) for row in grid.rows} == {len(grid.columns) - 1}
    cells = {row.name: dict(zip(grid.columns[1:], row.cells, strict=True)) for row in grid.rows}
    assert cells["blocks.1.linear.input"]["bits"] == "float"
    assert cells["blocks.1.linear.weight"]["bits"] == "8"
    assert (
        cells["blocks.1.linear.input"]["‖ΔW‖² at 4"]
        == cells["blocks.0.linear.weight"]["response at 2"]
        == "–"
    )


def test_the_note_states_the_error_of_the_sketch():
    table = make_sensitivity(make_setup(2))
    assert "exact" in sketch_note(replace(table, sketch_error=0.0))
    assert "at most 1.2%" in sketch_note(replace(table, sketch_error=0.0123))
    assert sketch_note(replace(table, sketch_error=float("nan"))) == ""
