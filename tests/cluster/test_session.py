import json
import os
import socket
import subprocess
import sys

import pytest
import ray

from raysearch.cluster import session
from raysearch.cluster.room import has_no_autoscaler
from raysearch.cluster.session import RaySession, ray_session
from raysearch.errors import ConfigError, PoolError
from tests.support.patience import HANG_SECONDS


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener.getsockname()[1]


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head:", ":6379", "head:x"])
def test_other_forms_of_address_are_refused(address, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(ConfigError, match="'local', 'auto', HOST and HOST:PORT"), ray_session(address):
        pass


def test_a_dead_address_fails_at_once(free_port, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address, variable in ((f"127.0.0.1:{free_port}", ""), ("auto", f"127.0.0.1:{free_port}")):
        monkeypatch.setenv("RAY_ADDRESS", variable)
        with (
            pytest.raises(PoolError, match=f"nothing answers at 127.0.0.1:{free_port}"),
            ray_session(address),
        ):
            pass


def test_a_ray_that_does_not_start_is_told_with_what_to_look_for(monkeypatch):
    def too_slow(**options):
        # What Ray raises, and all that it raises, when it takes longer than it gives itself.
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(PoolError, match=r"timed out during startup.*too busy"), ray_session("local"):
        pass


@pytest.mark.ray
def test_a_running_ray_is_used_and_left(ray_cluster, caplog):
    with ray_session("local", 1) as session:
        assert not session.is_embedded
        assert session.resources["CPU"] == 8
    assert ray.is_initialized()
    assert not caplog.text
    with ray_session("local", 4):
        assert "the cluster has 8 CPUs; the pool and training together want 9" in caplog.text


@pytest.mark.ray
@pytest.mark.slow
def test_an_embedded_ray_leaves_nothing_behind(tmp_path):
    code = """
import json
import os
from tests.support.patience import started_ray
before = dict(os.environ)
with started_ray("local", 1, object_store_bytes=80 << 20) as session:
    assert session.is_embedded and session.resources["CPU"] == 3, session
    import ray
    folder = ray._private.worker._global_node.get_session_dir_path()
    assert os.path.exists(folder)
assert not ray.is_initialized()
assert not os.path.exists(folder)
assert {name for name in os.environ if "TOKEN" in name or "AUTH" in name} <= set(before)
"""
    environment = {name: value for name, value in os.environ.items() if "AUTH" not in name}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_workers_that_the_cluster_can_never_hold_are_refused_with_the_numbers():
    fixed = RaySession(True, {"CPU": 4.0})
    fixed.check_workers(2, "CPU", 2.0)
    with pytest.raises(PoolError, match=r"3 workers of 2 CPU, together 6, .* has 4 .* to 4 at most.* to 2"):
        fixed.check_workers(3, "CPU", 2.0)
    with pytest.raises(PoolError, match=r"1 workers of 1 GPU.* has 0"):
        fixed.check_workers(1, "GPU", 1.0)
    growing = RaySession(False, {"CPU": 4.0}, {"CPU": 8.0})
    growing.check_workers(8, "CPU", 1.0)
    with pytest.raises(PoolError, match="has 4 and can grow to 8"):
        growing.check_workers(9, "CPU", 1.0)
    RaySession(False, {"CPU": 4.0}).check_workers(9, "CPU", 1.0)


def test_a_cluster_without_an_autoscaler_is_waited_for_and_grows_by_hand_alone(monkeypatch):
    reports = {"ours": ["node_a"], "scaled": ["ray.head"], "none": []}
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "a"}, {"NodeID": "b"}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(session, "JOIN_SECONDS", 0.0)
    for name, kinds in reports.items():
        text = json.dumps(
            {"autoscaler_report": {"active_nodes": dict.fromkeys(kinds, 1), "idle_nodes": None}}
        )
        monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key, text=text: text)
        assert has_no_autoscaler() == (name == "ours")
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: None)
    assert not has_no_autoscaler()
    manual = RaySession(False, {"CPU": 2.0}, is_manual=True)
    manual.check_workers(3, "CPU", 1.0)
    with pytest.raises(
        PoolError, match=r"has 3 .* let nodes join first, since it has no autoscaler, .* to 3"
    ):
        manual.check_workers(8, "CPU", 1.0)


def test_gpus_that_an_autoscaler_may_bring_count():
    assert RaySession(False, {"CPU": 4.0, "GPU": 1.0}).may_have("GPU")
    assert RaySession(False, {"CPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}).may_have("GPU")
    assert not RaySession(False, {"CPU": 4.0}, {"CPU": 8.0}).may_have("GPU")
    assert not RaySession(True, {"CPU": 4.0}).may_have("GPU")
