"""The notebook was executed, without an error, by code that still has its names."""

import ast
import json
from pathlib import Path

import raysearch
from raysearch.saved_run import SavedRun

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def test_every_cell_was_executed_and_names_what_exists():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 8
    assert all(cell["execution_count"] for cell in cells)
    assert [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"] == []
    code = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    owners = {"raysearch": raysearch, "saved": SavedRun}
    used = [
        (node.value.id, node.attr)
        for node in ast.walk(code)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners
    ]
    assert ("saved", "trials") in used
    assert [name for name in used if not hasattr(owners[name[0]], name[1])] == []
