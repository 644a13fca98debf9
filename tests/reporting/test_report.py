import builtins
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from raysearch.errors import ConfigError
from raysearch.records import (
    BitAssignment,
    CostModel,
    EpochMetrics,
    FineTuneResult,
    OptionEffect,
    QuantizerSetup,
    RunStatus,
    Scheme,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    Trace,
)
from raysearch.reporting import ReportRecords, render_comparison, render_report
from raysearch.reporting.charts import chart_data
from raysearch.reporting.lanes import LaneMaker
from raysearch.reporting.printable import printable
from tests.support.run_records import make_report_records, make_result, make_sensitivity, make_setup

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that every tag is closed, and keeps ids, scripts, and the text outside of them."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.text, self.scripts = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        assert tag not in ("iframe", "link", "img"), tag
        assert not [name for name, _ in attributes if name.startswith("on") or name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        is_script = self.open and self.open[-1] in ("script", "style")
        (self.scripts if is_script else self.text).append(data)


@pytest.fixture(scope="module")
def page():
    return render_report(make_report_records())


def text_of(html):
    return " ".join(" ".join(Page(html).text).split())


def test_the_page_is_whole_and_needs_nothing_else(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert page.count("<script") == 3, "the data, the library, and what the page does with it"
    assert "default-src 'none'" in page
    assert "sourceMappingURL" not in page
    assert render_report(make_report_records()) == page, "equal records give equal pages"


def test_it_says_what_the_records_say(page):
    text = text_of(page)
    for part in (
        "20261101-101500-ab12", "avg_bits<=4", "size<=13%", "0.9512", "0.9498", "−0.0014", "uniform 4",
        "blocks.3.linear.weight", "The state after epoch 4 was kept", "ab" * 32, "onnxruntime 1.30.1",
        "99.80%", "3-bit codes are stored", "QAT ran on one worker", "1 of 12 trials failed", "2.6 h",
        "120.56 KiB", "smaller), accuracy 0.9512 → 0.9498", "verified in torch 2.13.0 and onnxruntime 1.30.1",
        "raysearch run my_task.py:make_task --budget 'avg_bits<=4'", "--set seed=3", "version of torch",
    ):  # fmt: skip
        assert part in text, part


def test_the_figures_have_every_trial(page):
    (run,) = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    search = run["search"]
    assert [trial["number"] for trial in search["trials"]] == list(range(12))
    assert [trial["value"] for trial in search["trials"]].count(None) == 1, "the failed one"
    assert all(len(trial["schemes"]) == len(search["groups"]) == 8 for trial in search["trials"])
    assert [budget["kind"] for budget in run["budgets"]] == ["avg_bits", "size"]
    assert run["training"]["epochs"] == list(range(-1, 8))


def test_the_figures_know_the_bits_of_schemes_with_a_name():
    setup = make_setup(2)
    group = next(group for group in setup.groups.values() if group.id.endswith("weight"))
    named = replace(group, schemes=(Scheme.of("q4_k"), *group.schemes))
    changed = QuantizerSetup(setup.points, {**setup.groups, group.id: named})
    search = chart_data(make_report_records(2, setup=changed))["search"]
    assert dict(zip(search["schemes"], search["bits"], strict=True)) == {"q4_k": 4, "8": 8}


def test_a_step_is_what_the_whole_assignment_would_cost():
    records = make_report_records()
    model, table = CostModel(records.setup), records.sensitivity
    chosen = records.assignment
    row = {option: place for place, option in enumerate(table.effects)}

    def loss(assignment):
        rows = [row[option] for option in assignment.schemes.items()]
        return table.gram[np.ix_(rows, rows)].sum() / 2

    for kind in ("avg_bits", "size", "bops", "effective"):
        lanes = LaneMaker(records.setup, chosen, table, kind).lanes()
        for lane in lanes:
            for step in filter(None, (lane.down, lane.up)):
                other = BitAssignment({**chosen.schemes, lane.group: step.scheme})
                cost = model.costs(other)[kind] - model.costs(chosen)[kind]
                assert step.cost == pytest.approx(cost, abs=1e-12)
                assert step.loss == pytest.approx(loss(other) - loss(chosen))
        assert sum(lane.loss_share for lane in lanes) == pytest.approx(1)


def test_a_run_that_is_not_finished_shows_what_there_is():
    status = RunStatus("r", "failed", "search", 3, 9, {"calibration": 3.0}, message="the <b>unit</b> failed")
    none = dict.fromkeys(("result", "search", "fine_tune", "manifest"))
    text = text_of(render_report(make_report_records(**none, metrics={}, status=status)))
    assert "failed in search: there is no answer yet" in text
    assert "the <b>unit</b> failed" in text
    assert "blocks.3.linear.weight" in text, "its layers"
    assert "calibration 3.0 s" in text
    nothing = text_of(render_report(ReportRecords("r", status=replace(status, state="running"))))
    assert "running in search" in nothing


def test_two_runs_stand_side_by_side():
    first = make_report_records()
    started = {"config": {"seed": 4, "search": {"num_trials": 12}}}
    second = make_report_records(num_trials=5, started=started, run_id="other<b>")
    html = render_comparison(first, second)
    text = text_of(html)
    assert "20261101-101500-ab12 and other<b>" in text
    assert "seed 3 4" in text
    different = [
        name for name, scheme in first.assignment.schemes.items() if scheme != second.assignment.schemes[name]
    ]
    assert all(name in text for name in different)
    assert len(json.loads(re.search(r'id="data">(.*?)</script>', html)[1])) == 2


def test_what_the_records_hold_is_text_and_never_markup():
    bad = "</script><script>alert('1')</script>&$x_{1}$\u202e\x1b[31m模型" + "long_" * 40
    tuned = FineTuneResult("c", 0, bad, (EpochMetrics(-1, {bad: 1.0}), EpochMetrics(0, {bad: 0.5})))
    records = make_report_records(3, bad + "{}", fine_tune=tuned, run_id=bad)
    html = render_report(records)
    assert printable(bad) in "".join(Page(html).text)
    assert html.count("<script") == 3
    assert "\u202e" not in html, "nothing turns the direction of what follows it"


def test_skipped_training_says_why():
    html = render_report(
        make_report_records(fine_tune=FineTuneResult("", -1, "loss", (), "no training data"))
    )
    assert "Skipped: no training data" in html
    assert '"training":{' not in html


def test_odd_numbers_do_not_break_a_page():
    setup = make_setup(2, "l{}")
    traces = {
        "l0.weight": Trace("l0.weight", float("nan"), float("nan"), 0.0, float("nan"), 1, 1, "joint", False),
        "l1.weight": Trace("l1.weight", -1e-9, float("inf"), 0.0, float("inf"), 1, 1, "joint", False),
    }
    effects = {
        (g, b): OptionEffect(g, b, setup.group_kind(g), 0.0, 0.0, 0.0, 0.0) for g, b in setup.options()
    }
    table = SensitivityTable(traces, effects, np.zeros((len(effects), len(effects))), "")
    only = SearchTrial(0, BitAssignment.extreme(setup, 0), {"size": 10.0}, {}, 0.0, float("nan"), "exact")
    search = SearchResult(only, (only,), (only,), float("-inf"), {})
    result = make_result(setup, search, notes=(), seconds={}, float_metrics={"a": float("nan")})
    html = render_report(ReportRecords("r", setup, result, search=search, sensitivity=table))
    Page(html)
    assert "−∞" in html
    assert ">nan<" not in html
    assert "NaN" not in re.search(r'id="data">(.*?)</script>', html)[1]


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    original = builtins.__import__

    def without(name, *rest, **named):
        if name == "jinja2":
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"'jinja2' is not installed.*pip install jinja2"):
        render_report(make_report_records(2))


def test_negative_shares_and_many_layers_have_a_lane_each():
    setup = make_setup(60)
    html = render_report(make_report_records(60, sensitivity=make_sensitivity(setup, negative=True)))
    assert html.count('<tr data-kind="weight"') == 60
    assert "width: -" not in html
