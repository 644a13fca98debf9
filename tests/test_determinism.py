import os

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.determinism import _precision_places, reproducible
from raysearch.errors import UnitError


def state() -> tuple[object, ...]:
    return (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.utils.deterministic.fill_uninitialized_memory,
        [place.fp32_precision for place in _precision_places()],
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def inside(workspace: str | None) -> None:
    assert state()[:4] == (2, False, True, False)
    assert set(state()[4]) <= {"ieee"}
    # The older switches can still be read, as torch's own context managers do.
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (":16:8" if workspace == ":16:8" else ":4096:8")
    raise KeyError


@pytest.mark.parametrize("workspace", [None, ":16:8", "wrong"])
def test_the_users_settings_come_back(monkeypatch: pytest.MonkeyPatch, workspace: str | None) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if workspace:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", workspace)
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.benchmark = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        before = state()
        with pytest.raises(KeyError), reproducible():
            inside(workspace)
        assert state() == before
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("medium", True)
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not _precision_places(), reason="this torch has the older switches only")
def test_the_users_newer_precision_settings_come_back() -> None:
    torch.backends.fp32_precision = "tf32"
    try:
        before = state()
        with reproducible():
            assert set(state()[4]) == {"ieee"}
        assert state() == before
    finally:
        torch.backends.fp32_precision = "none"


def scatter(_: object) -> dict[str, np.ndarray]:
    return {"x": torch.zeros(4).put_(torch.tensor([1]), torch.ones(1)).numpy()}


def test_an_operation_without_deterministic_form_is_named_with_the_setting_that_allows_it() -> None:
    with pytest.raises(UnitError, match=r"put_ does not have.*cluster\.deterministic=false"):
        list(LocalPool(None).run(scatter, {("a",): ()}))
    ((_, value),) = LocalPool(None, deterministic=False).run(scatter, {("a",): ()})
    assert value["x"].tolist() == [0, 1, 0, 0]
    assert not torch.are_deterministic_algorithms_enabled()
