import builtins
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from raysearch.errors import ConfigError
from raysearch.records import (
    BitAssignment,
    EpochMetrics,
    FineTuneResult,
    OptionEffect,
    SearchResult,
    SearchTrial,
    SensitivityTable,
    Trace,
)
from raysearch.reporting import ReportRecords, render_report
from tests.support.run_records import (
    make_fine_tune,
    make_manifest,
    make_result,
    make_search,
    make_sensitivity,
    make_setup,
)

VOID = {"meta", "link", "br", "hr", "img", "input"}
COMPARISON = [{"method": "uniform 4", "accuracy": 0.5}, {"method": "searched", "size": 12.5}]


class Page(HTMLParser):
    """Checks that every tag is closed, and keeps the text outside of figures and ids."""

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.text = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        assert tag not in ("script", "iframe", "link", "img"), tag
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def render(num_layers=4, negative=False, **changes):
    setup = make_setup(num_layers, changes.pop("name", "blocks.{}.linear"))
    search = make_search(setup, 12)
    comparison = changes.pop("comparison", COMPARISON)
    values = {
        "sensitivity": make_sensitivity(setup, negative),
        "fine_tune": make_fine_tune(),
        "manifest": make_manifest(),
        **changes,
    }
    return render_report(ReportRecords(make_result(setup, search), setup, search, **values), comparison)


@pytest.fixture(scope="module")
def page():
    return render()


def test_the_page_is_whole_and_needs_nothing_else(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids)), "figures share no ids"
    assert "http" not in page
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert set(re.findall(r'href="(.)', page)) <= {"#", "d"}, "only own parts and inline data"
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(parsed.ids)
    assert page.count("<svg") == 7


def test_it_says_what_the_records_say(page):
    text = " ".join(" ".join(Page(page).text).split())
    for part in (
        "20261101-101500-ab12", "avg_bits<=4", "size<=13%", "0.9512", "0.9498", "−0.0014", "uniform 4",
        "blocks.3.linear.weight", "The state after epoch 4 was kept", "ab" * 32, "onnxruntime 1.30.1",
        "99.80%", "3-bit codes are stored", "QAT ran on one worker", "1 of 12 trials failed", "2.6 h",
        "120.56 KiB",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.slow
def test_equal_records_give_equal_pages(page, monkeypatch, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "lines.linewidth": 9}):
        assert render() == page
    assert matplotlib.rcParams["svg.hashsalt"] is None, "nothing of the style stays behind"


def test_colours_are_those_of_the_page(page):
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.search(r"#0102", figures)
    assert "var(--ink)" in figures
    assert "fill: #000000" not in figures
    for name in ("--ink", "--rule", "--c1", "--c2", "--c3"):
        assert len(re.findall(rf"{name}: #", page)) == 2, "once for light, once for dark"


@pytest.mark.slow
def test_many_layers_stay_one_screen_wide_and_high():
    few, many = render(3), render(60)
    assert len(Page(many).text) > len(Page(few).text)
    boxes = [tuple(map(float, b)) for b in re.findall(r'viewBox="0 0 ([0-9.]+) ([0-9.]+)"', many)]
    assert all(width == pytest.approx(720) and height < 400 for width, height in boxes)
    labels = re.findall(r"<text[^>]*>blocks\.\d+\.linear\.weight", many)
    assert 3 * 20 <= len(labels) <= 3 * 40, "every k-th name, in each of three figures"
    assert "blocks.59.linear.weight" in "".join(Page(many).text), "the table has them all"


def test_sections_without_records_are_left_out():
    html = render(3, sensitivity=None, fine_tune=None, manifest=None, comparison=())
    for title in ("Sensitivity", "Quantization-aware training", "Exported files", "Comparison"):
        assert f">{title}</h" not in html
    assert ">Search</h2>" in html


@pytest.mark.slow
def test_what_the_records_hold_is_text_and_never_markup():
    bad = "<script>alert('1')</script>&$x_{1}$"
    tuned = FineTuneResult("c", 0, bad, (EpochMetrics(-1, {bad: 1.0}), EpochMetrics(0, {bad: 0.5})))
    html = render(3, name=bad + "{}", fine_tune=tuned, metrics={"float": {bad: 1.0}}, comparison=[{bad: bad}])
    text = "".join(Page(html).text)
    assert bad in text
    assert "<script" not in html


@pytest.mark.slow
def test_names_in_any_script_and_of_any_length():
    page = Page(render(3, name="模型.층." + "very_long_name_" * 8 + "{}"))
    assert "模型.층." in "".join(page.text)


def test_skipped_training_says_why():
    html = render(3, fine_tune=FineTuneResult("", -1, "loss", (), "the task has no training data"))
    assert "Skipped: the task has no training data" in html
    assert "Metrics of the training" not in html


@pytest.mark.slow
def test_odd_numbers_do_not_break_a_figure():
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
    html = render_report(ReportRecords(result, setup, search, sensitivity=table))
    Page(html)
    assert "−∞" in html
    assert ">nan<" not in html


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_the_remedy(monkeypatch, package):
    original = builtins.__import__

    def without(name, *rest, **named):
        if name == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"'{package}' is not installed.*pip install raysearch\[report\]"):
        render(2)
