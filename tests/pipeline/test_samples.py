"""How many samples workers take at once."""

import pytest
import torch

from raysearch.config import ObjectiveConfig, load_config
from raysearch.evaluation import batch_size
from raysearch.evaluation.vocabulary.positions import SHARD_VALUES
from raysearch.pipeline import samples as samples_of_a_run
from raysearch.pipeline.inputs import LEAST_CACHE_BYTES, check_inputs
from raysearch.pipeline.samples import Samples, largest_shard
from raysearch.pipeline.stages import search_shards
from raysearch.task import Task

POSITIONS, WORDS = 4, 20_000


class Words(torch.nn.Module):
    """Logits of every word at every position."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(words, 2), torch.nn.Linear(2, words)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens))


def task_of(words: int, batch: torch.Tensor) -> Task:
    return Task(model=Words(words), example_inputs=(batch[:2],), calibration=[batch])


def test_logits_over_a_vocabulary_bound_a_shard() -> None:
    batch = torch.zeros(500, POSITIONS, dtype=torch.long)
    task = task_of(WORDS, batch)
    size = largest_shard(task, batch, ObjectiveConfig())
    assert size == SHARD_VALUES // (POSITIONS * WORDS)
    for other in (ObjectiveConfig(divergence="mse"), ObjectiveConfig(class_dim=1)):
        assert largest_shard(task, batch, other) is None
    samples = Samples([batch], [batch, batch[:7]], []).cut(size)
    assert [batch_size(shard) for shard in samples.calibration] == [size, size, 500 - 2 * size]
    assert [batch_size(shard) for shard in samples.validation][-1] == 7
    assert samples.largest_shard == size


def test_other_outputs_leave_shards_to_the_settings() -> None:
    batch = torch.zeros(8, POSITIONS, dtype=torch.long)
    samples = Samples([batch], [batch], [])
    assert samples.cut(largest_shard(task_of(100, batch), batch, ObjectiveConfig())) is samples
    # Indices without a word: the checks of the inputs say so, not this one.
    assert largest_shard(task_of(WORDS, batch), batch + WORDS, ObjectiveConfig()) is None


def test_a_run_cuts_its_shards_and_its_caches_to_the_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples_of_a_run, "SHARD_VALUES", 3 * POSITIONS * WORDS)
    batch = torch.randint(0, WORDS, (8, POSITIONS), generator=torch.Generator().manual_seed(0))
    task = task_of(WORDS, batch)
    inputs = check_inputs(task, load_config(), ["avg_bits<=4"])
    assert [len(shard) for shard in inputs.samples.calibration] == [3, 3, 2]
    assert [len(shard) for shard in search_shards(inputs)[0]] == [3, 3, 2]
    assert inputs.cache_bytes == LEAST_CACHE_BYTES
    own = check_inputs(task, load_config(assignments=["cluster.cache_bytes=5"]), ["avg_bits<=4"])
    assert own.cache_bytes == 5
