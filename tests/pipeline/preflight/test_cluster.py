"""What a node cannot do for a run is told before anything is computed."""

import re
from functools import partial

import pytest
import torch
from torch.utils.data import Dataset

from raysearch.artifacts import Storage
from raysearch.cluster.nodes import NodeCheck
from raysearch.cluster.versions import CLIENT_VARIABLE, as_text, versions_here
from raysearch.config import load_config
from raysearch.errors import StorageError, TaskError
from raysearch.pipeline.preflight import cluster
from raysearch.pipeline.preflight.cluster import asked_cluster
from tests.support import toy_task


class Files(Dataset):
    """Reads a file a sample."""

    def __init__(self, path):
        self.path = path

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor(list(self.path.read_bytes()))


def check_cluster(task, config, storage):
    with asked_cluster(task, config, storage) as nodes:
        nodes.judge()
        return nodes.finish()


@pytest.mark.ray
def test_code_data_and_storage_that_a_node_has_not_are_refused_by_name(
    ray_cluster, tmp_path, monkeypatch, caplog
):
    config = load_config()
    storage = Storage(tmp_path / "runs")
    task = toy_task.make_task()
    here = versions_here()
    monkeypatch.setenv(CLIENT_VARIABLE, as_text(here | {"torch": "1.0"}))
    assert "1 nodes asked" in check_cluster(task, config, storage)
    assert f"submitted this run has other versions than its driver: torch 1.0 instead of {here['torch']}" in (
        caplog.text
    )
    assert list((tmp_path / "runs").iterdir()) == [], "nothing is left"

    (tmp_path / "only_here.py").write_text("def loss(outputs, batch): return outputs.mean()\n")
    monkeypatch.syspath_prepend(tmp_path)
    task.loss = __import__("only_here").loss
    message = r"node \S+ cannot use the task's code: ModuleNotFoundError: .*only_here.*travel with it.*--pip"
    with pytest.raises(TaskError, match=message):
        check_cluster(task, config, storage)

    task.loss, task.train = None, Files(tmp_path / "none.bin")
    message = r"cannot read the first sample of Task\(train=...\): FileNotFoundError.*none\.bin.*every node"
    with pytest.raises(TaskError, match=message):
        check_cluster(task, config, storage)
    check_cluster(task, load_config(overrides={"training": {"epochs": 0}}), storage)

    task.factory = partial(torch.load, tmp_path / "none.pt")
    message = r"node \S+ cannot make the model: the function Task.* FileNotFoundError.*none\.pt.*every node"
    with pytest.raises(TaskError, match=message):
        check_cluster(task, load_config(overrides={"training": {"epochs": 0}}), storage)

    elsewhere = cluster._storage_question(storage, "none.tmp")
    message = (
        f"cannot use the storage {re.escape(storage.shown())}: it is another folder there .* all nodes share"
    )
    with pytest.raises(StorageError, match=message):
        NodeCheck([elsewhere]).finish()
