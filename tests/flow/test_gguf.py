"""A language model's directory through the entire walk to a GGUF file, its types chosen by the search."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import raysearch
from raysearch.artifacts import RunStore, codecs, resolve_run
from raysearch.export.check_folder import verify_folder
from raysearch.huggingface import causal_lm_task
from raysearch.quantizer import storable
from tests.support.command_line import QUICK
from tests.support.gguf_models import TEXT, build, save

gguf = pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")
pytestmark = [pytest.mark.slow, pytest.mark.process]

SETTINGS = [
    *QUICK,
    'placement.weight_schemes=["q2_k", "q4_k", "q8_0"]',
    'rounding.refine=["sequential", "tune"]',
    "rounding.refine_steps=2",
    "training.epochs=0",
    "search.num_trials=4",
    'export.targets=["gguf", "packed"]',
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    folder = tmp_path_factory.mktemp("gguf")
    model = build("llama", hidden_size=256, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2)
    save(model, folder / "model")
    task = causal_lm_task(folder / "model", TEXT * 20, window=24)
    config = raysearch.load_config(
        overrides={"placement": {"activation_bit_widths": ()}}, assignments=SETTINGS
    )
    raysearch.run(task, "bpw<=4.6", folder, config=config, run_id="run", workers=0)
    return resolve_run("run", folder)


def test_the_file_has_the_types_that_the_search_chose(store: RunStore) -> None:
    chosen = store.load(codecs.SEARCH).best.assignment.per_point(store.load(codecs.SETUP))
    path = Path(store.storage.local_path("model")) / "model.gguf"
    types = {tensor.name: tensor.tensor_type.name.lower() for tensor in gguf.GGUFReader(path).tensors}
    assert types["blk.0.attn_q.weight"] == str(chosen["model.layers.0.self_attn.q_proj.weight"])
    assert sorted(str(scheme) for scheme in chosen.values()) == sorted(
        t for t in types.values() if t != "f32"
    )
    assert len(set(chosen.values())) > 1
    checks = [check for check in store.load(codecs.MANIFEST).checks if check.target == "gguf"]
    assert checks[0].agreement > 0.9


def test_the_folder_is_verified_again_without_the_task(store: RunStore) -> None:
    found = verify_folder(store.storage.local_path("model"))
    checks = {check.target: check for check in found.checks}
    assert checks.keys() == {"packed", "gguf"}
    assert checks["gguf"].agreement > 0.9


def test_rows_that_hold_no_large_blocks_have_the_next_type_of_small_ones(store: RunStore) -> None:
    setup = store.load(codecs.SETUP)
    down, up = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("down", "up"))
    assert [str(scheme) for scheme in setup.group_of(up).schemes] == ["q2_k", "q4_k", "q8_0"]
    assert [str(scheme) for scheme in setup.group_of(down).schemes] == ["q4_0", "q8_0"]


def test_every_table_of_the_run_holds_scales_of_the_types(store: RunStore) -> None:
    setup = store.load(codecs.SETUP)
    seen = set()
    for table in (store.load(codecs.RANGES).ranges, store.load(codecs.ROUNDING).weights):
        for (name, scheme), value in table.items():
            scale_format = setup.points[name].at(scheme).scale_format
            scale = torch.from_numpy(value.scale.copy())
            assert torch.equal(storable(scale, scale_format), scale), (name, scheme)
            seen.add(scale_format)
            assert (value.minimum is not None) == (scale_format in ("q2_k", "q4_k"))
            if value.minimum is not None:
                minimum = torch.from_numpy(value.minimum.copy())
                assert torch.equal(storable(minimum, scale_format, least=0), minimum), (name, scheme)
    assert seen == {"q2_k", "q4_k", "float16"}
