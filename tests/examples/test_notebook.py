"""The notebooks were executed, without an error, by code that still has its names."""

import ast
import json
from pathlib import Path

import pytest

import raysearch
from raysearch.saved_run import SavedRun

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_was_executed_and_names_what_exists(notebook):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5
    assert all(cell["execution_count"] for cell in cells)
    assert [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"] == []
    code = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    owners = {"raysearch": raysearch, "saved": SavedRun}
    used = [
        (node.value.id, node.attr)
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners
    ]
    assert {name for name, _ in used} == set(owners)
    assert len(NOTEBOOKS) == 2
    assert [name for name in used if not hasattr(owners[name[0]], name[1])] == []
