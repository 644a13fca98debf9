"""The pages name only files, folders, functions and classes that exist."""

import ast
import re
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raysearch"
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
FOLDERS = ("raysearch/", "tests/", "docs/", "examples/", "benchmarks/", "clusters/")
NAMES_WITH_FILE = re.compile(r"((?:`[\w.]+`(?:, | and )?)+) \(`([\w./]+\.py)`\)")
"""`name`, `Class.name` (`path/of/their/file.py`)."""


def text_of(page: str) -> str:
    """A page without its blocks of code, each paragraph on one line."""
    text = (ROOT / page).read_text()
    return re.sub(r"\s+", " ", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def named_paths(text: str) -> list[Path]:
    """Paths from the repository's root, and Python files as they are called inside the package."""
    paths = []
    for name in re.findall(r"`([\w./-]+)`", text):
        if name.startswith(FOLDERS):
            paths.append(ROOT / name)
        elif "/" in name and name.endswith(".py"):
            paths.append(PACKAGE / name)
    return paths


@cache
def defined_names(path: Path) -> frozenset[str]:
    """Every function, class, method and constant of a file; what is in a class also as Class.name."""
    names: set[str] = set()

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.update((node.name, f"{prefix}{node.name}"))
            if isinstance(node, ast.ClassDef):
                visit(node.body, f"{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            if isinstance(node, ast.AnnAssign):
                targets = [node.target]
            names.update(f"{prefix}{target.id}" for target in targets if isinstance(target, ast.Name))

    visit(ast.parse(path.read_text()).body, "")
    return frozenset(names)


def is_importable(dotted: str) -> bool:
    """Whether a.b.c is a module, or an attribute of the deepest module in it."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            value = import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for name in parts[count:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_every_named_path_exists(page):
    assert [str(path) for path in named_paths(text_of(page)) if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_name_stands_in_the_file_that_is_named_with_it(page):
    missing = []
    for names, file in NAMES_WITH_FILE.findall(text_of(page)):
        path = ROOT / file if file.startswith(FOLDERS) else PACKAGE / file
        defined = defined_names(path)
        missing += [(name, file) for name in re.findall(r"`([\w.]+)`", names) if name not in defined]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_every_dotted_name_can_be_imported(page):
    dotted = re.findall(r"`(raysearch(?:\.\w+)+)(?:\([^`]*\))?`", text_of(page))
    assert [name for name in dotted if not is_importable(name)] == []


def test_the_walk_names_every_folder_of_the_package():
    text = text_of("docs/walkthrough.md")
    folders = [path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")]
    assert [str(folder) for folder in folders if f"{folder}/" not in text] == []


def test_the_layers_are_those_that_a_machine_holds():
    (block,) = re.findall(r"```\n(cli .*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.DOTALL)
    described = [{name.strip() for name in layer.split("|")} for layer in block.split("→")]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    fenced = [set(re.findall(r"raysearch\.(\w+)", layer)) for layer in layers]
    assert described == [layer for layer in fenced if layer != {"__main__"}]


def test_both_pages_say_much_that_is_checked():
    """Else a change of how names are written would leave nothing to check."""
    for page in ("docs/walkthrough.md", "docs/maths.md"):
        assert len(NAMES_WITH_FILE.findall(text_of(page))) > 40, page


def test_a_missing_name_is_noticed():
    text = "see `choose` (`raysearch/nowhere.py`), `Race.missing` (`raysearch/search/racing.py`)"
    assert NAMES_WITH_FILE.findall(text)[1] == ("`Race.missing`", "raysearch/search/racing.py")
    assert [path.exists() for path in named_paths(text)] == [False, True]
    assert "Race.missing" not in defined_names(PACKAGE / "search" / "racing.py")
    assert not is_importable("raysearch.search.missing")
