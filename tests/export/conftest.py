"""One exported folder that several tests read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raysearch.export.extras import Extra
from tests.support.export_cases import Case, case, forward_all


@pytest.fixture(scope="session")
def residual() -> Case:
    return case("residual")


@pytest.fixture(scope="session")
def exported(residual: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    batches = [residual.inputs(count) for count in (1, 3, 8)]
    residual.export(folder, "packed", batches=batches, forward=forward_all)
    return folder


@pytest.fixture
def no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra `onnx` were not installed."""
    installed = Extra.missing
    monkeypatch.setattr(
        Extra, "missing", lambda extra: ["no_such_package"] if extra.name == "onnx" else installed(extra)
    )


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "model"))
