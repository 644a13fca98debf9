"""Every task of the quick start can be placed, and the loop of the page for users of NNCF runs."""

import re
from pathlib import Path

import pytest
import torch

import raysearch

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "quickstart.md"
BLOCKS = re.findall(r"## ([^\n]+)\n(?:(?!\n## ).)*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize(("kind", "code"), BLOCKS, ids=[kind for kind, _ in BLOCKS])
def test_the_task_of_a_kind_of_model(kind, code):
    names: dict[str, object] = {}
    exec(code, names)
    setup, costs = raysearch.inspect(names["make_task"]())
    assert len(setup.of_kind("weight")) >= 2
    assert costs.lowest["avg_bits"] < 4


def test_there_is_one_of_each_kind():
    assert len(BLOCKS) == 4


@pytest.mark.filterwarnings("ignore:the float model's outputs are at chance level")
def test_the_loop_for_users_of_nncf_ends_in_a_model_and_goes_on(tmp_path, monkeypatch):
    page = (DOCS / "from-nncf.md").read_text()
    (loop,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (again,) = re.findall(r"```\n(saved = .*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(loop, names)
    trained, example = names["model"].eval(), names["example"]
    with torch.no_grad():
        expected = trained(*example)
    assert torch.allclose(names["restored"](*example), expected, atol=1e-5)
    exec(again, names)
    with torch.no_grad():
        assert torch.equal(names["model"].eval()(*example), expected)
