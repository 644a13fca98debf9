"""The shape of the house; import-linter (`make fences`) holds the direction of imports."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raysearch"
SOURCES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {
    "artifacts", "blockwise", "callbacks", "calibration", "cli", "cluster", "compression", "config",
    "controller", "evaluation", "export", "hooks", "huggingface", "pipeline", "placement", "quantizer",
    "records", "refinement", "reporting", "rounding", "search", "sensitivity", "simulation", "training",
}  # fmt: skip
VAGUE = {"found", "kept", "wanted", "held", "marks", "given", "asked", "whole"}
"""Names that say that something is there, not what it is."""


def test_the_rooms_are_those_of_the_architecture():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == ROOMS
    text = (ROOT / "docs" / "architecture.md").read_text()
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert not {name for name in ROOMS if f"{name}/" not in text}
    assert not {name for name in files if f"{name}.py" not in text}


def test_no_file_hides_what_is_inside():
    hidden = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert not [path for path in SOURCES if path.stem in hidden]


def test_benchmarks_and_tests_stand_alone():
    """Only the benchmarks' own tests import benchmarks, and no benchmark imports tests."""
    text = {
        path: path.read_text() for path in [*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("tests/**/*.py")]
    }
    pattern = {"benchmarks": r"^\s*(from|import) tests\b", "tests": r"^\s*(from|import) benchmarks\b"}
    for path in text:
        folder, *rest = path.relative_to(ROOT).parts
        if (folder, rest[0]) != ("tests", "benchmarks"):
            assert not re.search(pattern[folder], text[path], re.MULTILINE), path


def test_a_folder_of_many_files_has_rooms():
    for folder in {path.parent for path in SOURCES}:
        num_files = len(list(folder.glob("*.py"))) - 1  # but for __init__.py
        has_rooms = any(folder.glob("*/__init__.py"))
        assert has_rooms or num_files <= 17, folder


def test_files_stay_readable():
    assert not [(path.name, n) for path in SOURCES if (n := len(path.read_text().splitlines())) > 400]


def test_variables_are_called_what_they_hold():
    vague = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                name = node.id
            elif isinstance(node, ast.arg):
                name = node.arg
            else:
                continue
            if name in VAGUE:
                vague.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {name}")
    assert vague == []


def test_every_fence_lists_every_module():
    """A new top-level module must be put behind the fences on Ray and Optuna."""
    text = (ROOT / "pyproject.toml").read_text()
    names = ROOMS | {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    for forbidden, free in (('["ray"]', {"cluster", "training"}), ('["optuna"]', {"search"})):
        (listed,) = re.findall(
            rf"source_modules = \[([^\]]*)\]\nforbidden_modules = {re.escape(forbidden)}", text
        )
        assert set(re.findall(r'"raysearch\.(\w+)"', listed)) == names - free


def _asserts(function: ast.FunctionDef) -> bool:
    calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
    checks = [call for call in calls if re.search(r"^pytest\.(raises|warns)$|(^|\.)assert_\w+$", call)]
    return bool(checks) or any(isinstance(node, ast.Assert) for node in ast.walk(function))


def test_every_test_asserts():
    """Itself, or by a function called assert_…; a test that only runs something says little."""
    silent = []
    for path in sorted(ROOT.glob("tests/**/test_*.py")):
        functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
        silent += [(path.name, f.name) for f in functions if f.name.startswith("test_") and not _asserts(f)]
    assert silent == []


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "banned"),
    [
        ("raysearch.search", {"torch", "ray"}),
        ("raysearch.records", {"torch", "ray", "optuna"}),
        ("raysearch.export", {"ray", "optuna"}),
        ("raysearch.sensitivity", {"ray", "optuna"}),
        ("raysearch", {"torch", "numpy"}),
        ("raysearch.api", {"ray", "scipy", "pandas", "onnx", "onnxscript", "onnxruntime", "transformers"}),
        ("raysearch.cli", {"torch", "ray", "optuna", "scipy", "matplotlib"}),
    ],
)
def test_what_a_room_really_imports(name, banned):
    code = f"import sys, {name}; print(sorted({banned!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
