import ast
import json
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import raysearch
from raysearch.config import Config, Section

NAMES = [
    "BadInputError", "BitAssignment", "Callback", "Config", "Job", "MLflowCallback", "Metric",
    "ProgressLines", "QuantizationController", "QuantizerSetup", "RaysearchError", "RunError",
    "RunResult", "RunStatus", "SavedRun", "Task", "TensorBoardCallback", "WandbCallback",
    "__version__", "create_compressed_model", "create_controller", "export_run", "inspect",
    "list_runs", "load_config", "load_model", "load_run", "load_sensitivity", "load_task", "report",
    "resolve", "resolve_measured", "retrieve", "run", "status", "submit", "verify",
]  # fmt: skip


def import_every_module():
    """Importing a module makes it an attribute of its parent, over a public name that is spelled the same."""
    for module in pkgutil.walk_packages(raysearch.__path__, "raysearch."):
        import_module(module.name)


def static_imports():
    """Public name → the object that type checkers see: what stands in `if TYPE_CHECKING`."""
    tree = ast.parse(Path(raysearch.__file__).read_text())
    checked = [
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    imports = [node for block in checked for node in block.body]
    return {
        name.asname or name.name: getattr(import_module(node.module), name.name)
        for node in imports
        for name in node.names
    }


def test_the_public_names():
    assert raysearch.__all__ == NAMES
    assert dir(raysearch) == sorted(NAMES)
    with pytest.raises(AttributeError, match="nothing"):
        _ = raysearch.nothing


def test_every_public_name_is_the_object_of_its_home_whatever_was_imported():
    import_every_module()
    objects = static_imports()
    assert sorted([*objects, "__version__"]) == sorted(NAMES)
    for name, value in objects.items():
        assert getattr(raysearch, name) is value, name


def test_no_module_has_a_public_name():
    modules = {module.name for module in pkgutil.iter_modules(raysearch.__path__)}
    assert not modules & set(NAMES)


def test_a_misspelt_name_is_seen_by_type_checkers():
    """A function `__getattr__` at the top of a module gives it every name, as far as they know."""
    tree = ast.parse(Path(raysearch.__file__).read_text())
    assert "__getattr__" not in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_public_things_have_docstrings():
    assert not [n for n in NAMES if n != "__version__" and not getattr(raysearch, n).__doc__]


def flatten(section: Section, prefix: str = ""):
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from flatten(value, f"{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_setting_is_documented_with_its_default():
    rows = {}
    page = (Path(__file__).parents[1] / "docs" / "configuration.md").read_text()
    table = page.split("| key | default | meaning |")[1].split("\n\n")[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            rows[cells[0].strip("`")] = json.loads(cells[1].strip("`"))
    defaults = {key: json.loads(json.dumps(value)) for key, value in flatten(Config())}
    assert rows == defaults
