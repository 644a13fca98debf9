import pytest
import ray

from raysearch.cluster import nodes
from raysearch.cluster.nodes import Answer, Question
from raysearch.cluster.versions import versions_here
from raysearch.config import ClusterConfig
from raysearch.errors import PoolError, TaskError


def check_nodes(questions):
    return nodes.NodeCheck(questions).finish()


@pytest.mark.ray
def test_nodes_with_other_versions_are_told_and_what_they_cannot_do_is_an_error(
    ray_cluster, caplog, monkeypatch
):
    here = versions_here()
    able = Question(dict, "count", "Learn it.")
    assert f"1 nodes asked; the driver has Python {here['Python']}" in check_nodes([able])
    with monkeypatch.context() as patch:
        patch.setattr(ray, "nodes", list)
        assert "no node is there yet" in check_nodes([able])
    assert not caplog.text
    room = int(ray.available_resources()["CPU"])
    assert nodes.warm_up(ClusterConfig(workers=2), False) == 2
    assert nodes.warm_up(ClusterConfig(workers=100, cpus_per_worker=3), False) <= room / 3
    assert nodes.warm_up(ClusterConfig(workers=2, device="cuda"), True) == 0, "there is none to wait for"
    with pytest.raises(TaskError, match=r"^the node \S+ cannot fly: TypeError: .*arg.*\. Walk\.$"):
        check_nodes([able, Question(bool.from_bytes, "fly", "Walk.", TaskError)])
    nodes._judge(here | {"torch": "1.0"}, "host", ray.put(Answer(here)))
    assert f"the node host has other versions than the driver: torch {here['torch']} instead" in caplog.text
    missing = ray.remote(lambda: __import__("nothing_of_the_kind")).remote()
    ray.wait([missing])
    with pytest.raises(PoolError, match=r"host cannot import raysearch.*nothing_of_the_kind"):
        nodes._judge(here, "host", missing)
