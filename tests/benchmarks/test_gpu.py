"""The checks of a GPU also run on a CPU, and one that breaks hides no other."""

import json
import sys

import pytest

from benchmarks import gpu


@pytest.mark.slow
def test_the_checks_run_on_a_cpu_against_itself(tmp_path, monkeypatch, capsys):
    def broken(rows, device, case):
        raise RuntimeError("no | kernel")

    monkeypatch.setitem(gpu.CHECKS, "traces", (broken, 1))
    files = ["--json", str(tmp_path / "rows.json"), "--page", str(tmp_path / "page.md")]
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--only", "traces,scales,rounding", *files])
    with pytest.raises(SystemExit) as caught:
        gpu.main()
    assert caught.value.code == 1
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    failed = [row["check"] for row in rows if row["ok"] is False]
    assert failed == ["traces, images"]
    assert sum(row["ok"] is True for row in rows) == 15
    page = (tmp_path / "page.md").read_text()
    assert "no / kernel" in page
    assert "share of equal codes by GPTQ | 1 | ≥ 0.999 | ok |" in page
    assert "RuntimeError" in capsys.readouterr().err
