import os
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from raysearch.cluster.pool import LocalPool
from raysearch.determinism import _precision_places, plain_modes, process_as_found, reproducible, seeded
from raysearch.errors import UnitError
from raysearch.evaluation.forward import frozen_eval
from raysearch.simulation.prefix_cache import PrefixCache


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


class FakeGpu:
    """Stands in for the generator of a GPU, which this machine may not have."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = torch.zeros(1, dtype=torch.uint8)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [self.state.clone()])
        monkeypatch.setattr(torch.cuda, "set_rng_state_all", self._set)

    def _set(self, states: Iterable[torch.Tensor]) -> None:
        (self.state,) = states

    def draw(self) -> None:
        self.state += 1


def test_the_generators_of_gpus_come_back_too(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(monkeypatch)
    for context in (seeded(3), frozen_eval(torch.nn.Linear(1, 1))):
        with context:
            gpu.draw()
        assert int(gpu.state) == 0


@pytest.mark.parametrize("draws", [False, True])
def test_a_forward_that_draws_on_a_gpu_alone_is_not_replayed(
    monkeypatch: pytest.MonkeyPatch, draws: bool
) -> None:
    gpu = FakeGpu(monkeypatch)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    cache = PrefixCache(model, {"1.weight": [(model[1], "weight")]}, {}, 1 << 20)

    def run() -> None:
        if draws:
            gpu.draw()
        model(torch.ones(1, 2))

    options = [["1.weight"]]
    cache.record("shard", run, options, options)
    assert (cache.depth(["1.weight"]) == 0) == draws
    assert int(gpu.state) == 0


@pytest.mark.process
def test_importing_raysearch_sets_what_cublas_needs_before_its_first_product() -> None:
    code = "import os, raysearch; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    environment = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout.decode().strip() == ":4096:8"


def multiply(_: object) -> dict[str, np.ndarray]:
    raise RuntimeError("this operation is not deterministic; set CUBLAS_WORKSPACE_CONFIG=:4096:8")


def test_a_product_before_the_import_is_told_with_what_to_do() -> None:
    with pytest.raises(UnitError, match="before raysearch was imported: import it first"):
        list(LocalPool(None).run(multiply, {("a",): ()}))


def _modes():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


def _set_every_mode():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.autograd.set_detect_anomaly(True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_num_threads(3)
    warnings.simplefilter("ignore")
    sys.path.insert(0, "/nowhere")


def test_modes_that_a_script_sets_are_off_inside_and_everything_is_put_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = (_modes(), torch.get_num_threads(), list(warnings.filters), list(sys.path))
    plain = _modes()
    with process_as_found():
        _set_every_mode()
        (tmp_path / "other").mkdir()
        os.chdir("other")
        changed = _modes()
        with plain_modes():
            assert _modes() == plain
            layer = torch.nn.Linear(2, 2)
            layer(torch.ones(1, 2)).sum().backward()
        assert _modes() == changed
    assert (_modes(), torch.get_num_threads(), list(warnings.filters), list(sys.path)) == before
    assert Path.cwd() == tmp_path


def test_an_inference_mode_that_was_never_left_does_not_reach_a_run():
    with torch.inference_mode(), plain_modes():
        layer = torch.nn.Linear(2, 2)
        layer(torch.ones(1, 2)).sum().backward()
    assert layer.weight.grad is not None
