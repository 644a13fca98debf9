"""What the commands print: tables and progress, rich on a terminal and plain elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from rich.console import Console

from raysearch.artifacts import ListedRun
from raysearch.cli.tables import Format, table_text
from raysearch.records import (
    TERMINAL_STATES,
    BitAssignment,
    Budget,
    CostModel,
    Coverage,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    Scheme,
)
from raysearch.records.costs.text import cost, duration, number
from raysearch.reporting.grids import Grid, Row
from raysearch.reporting.live import progress_text
from raysearch.reporting.printable import printable, wrapped


def show_grid(out: Console, grid: Grid, form: Format = Format.TABLE, *, wide: bool = False) -> None:
    """Print a table.

    Args:
        out: where to.
        grid: the table.
        form: see `Format`.
        wide: see `table_text`.
    """
    out.out(table_text(grid, form, out.width, wide=wide), end="", highlight=False)


class PlainConsole(Console):
    """Prints text as it is: no bracket is markup, no line is broken, a control character is its code."""

    def __init__(self, width: int | None = None, *, stderr: bool = False) -> None:
        super().__init__(highlight=False, markup=False, soft_wrap=True, width=width, stderr=stderr)

    def print(self, *objects: Any, **options: Any) -> None:
        """See `Console.print`."""
        super().print(*(printable(str(each)) for each in objects), **options)

    def out(self, *objects: Any, **options: Any) -> None:
        """See `Console.out`."""
        super().out(*(printable(str(each)) for each in objects), **options)

    def prose(self, text: str) -> None:
        """Print sentences, on a terminal broken between words."""
        text = printable(text)
        self.print(wrapped(text, self.width) if self.is_terminal else text)


def out() -> PlainConsole:
    """Standard output; wide enough for whole names where it is no terminal."""
    console = PlainConsole()
    return console if console.is_terminal else PlainConsole(width=160)


def tell(text: str) -> None:
    """Sentences on stderr."""
    PlainConsole(stderr=True).prose(text)


def age_text(updated: float, now: float) -> str:
    """How long ago a run gave its last sign of life; "" where that is not known.

    Example:
        >>> age_text(1000.0, 1150.0)
        '2.5 min ago'
    """
    return f"{duration(max(0.0, now - updated))} ago" if updated else ""


def runs_grid(runs: Sequence[ListedRun], now: float) -> Grid:
    """A row a run.

    Args:
        runs: of one storage.
        now: Unix time, for ages.
    """
    rows: list[Row] = []
    for listed in runs:
        status = listed.status
        state = status.state
        if state not in TERMINAL_STATES:
            state = f"{state}: {status.message or progress_text(status)}"
        costs = {} if listed.result is None else listed.result.costs
        size = cost("size", costs["size"]) if "size" in costs else ""
        cells = (" ".join(listed.budget), state, size, age_text(status.updated, now))
        rows.append(Row(listed.run_id, cells))
    return Grid(("run", "budget", "state", "size", "last sign of life"), tuple(rows))


def front_grid(front: Sequence[Mapping[str, Any]]) -> Grid:
    """Trials of a front, by cost."""
    kinds = list(front[0]["costs"])
    rows: list[Row] = []
    for entry in front:
        costs = [cost(kind, entry["costs"][kind]) for kind in kinds]
        rows.append(Row(str(entry["trial"]), (number(entry["value"]), *costs)))
    return Grid(("trial", "measured", *kinds), tuple(rows), title="front")


def assignment_grid(setup: QuantizerSetup, assignment: Mapping[str, int | str]) -> Grid:
    """Group → bit-width, or scheme."""
    rows = [Row(name, (setup.group_kind(name), str(scheme))) for name, scheme in assignment.items()]
    return Grid(("group", "kind", "bits"), tuple(rows))


def layers_grid(setup: QuantizerSetup) -> Grid:
    """Every group with its points, grid and widths, and what stays float and why."""
    columns = ("group", "kind", "shape", "elements", "MACs", "quantizer", "bit-widths", "pairs")
    caption = "" if setup.coverage is None else f"{setup.coverage.describe()}."
    rows: list[Row] = []
    for group in setup.groups.values():
        points = [setup.points[name] for name in group.points]
        first = points[0]
        shape = "×".join(map(str, first.shape))
        num_elements = sum(point.num_elements for point in points)
        # The MACs of an activation are those of the weight that it meets.
        macs = f"{sum(point.macs for point in points):,}" if first.kind == "weight" else ""
        schemes = ", ".join(map(str, group.schemes))
        pairs = " ".join(f"{weight_bits}/{input_bits}" for weight_bits, input_bits in _pairs(setup, group))
        others = ", ".join(group.points[1:])
        cells = (
            first.kind,
            shape,
            f"{num_elements:,}",
            macs,
            quantizer_text(first),
            schemes,
            pairs,
            others,
        )
        rows.append(Row(group.id, cells))
    for weight in setup.coverage.floating if setup.coverage else ():
        shape = "×".join(map(str, weight.shape))
        cells = ("weight", shape, f"{weight.num_elements:,}", "", f"none: {weight.reason}", "float", "", "")
        rows.append(Row(weight.name, cells))
    return Grid((*columns, "shares its width with"), tuple(rows), caption=caption)


def fused_grid(setup: QuantizerSetup) -> Grid | None:
    """The groups that a runtime makes one, and why; None where it makes none.

    Weights are named below the module that holds all of them.
    """
    rows: list[Row] = []
    for group in setup.groups.values():
        if not group.reason:
            continue
        paths = [name.split(".") for name in group.points]
        columns = zip(*paths, strict=False)
        shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns)]
        names = [".".join(path[len(shared) :]).removesuffix(".weight") for path in paths]
        rows.append(Row(".".join(shared), (", ".join(names), group.reason)))
    return Grid(("module", "are one", "why"), tuple(rows)) if rows else None


def quantizer_text(point: QuantizationPoint) -> str:
    """Mode, sign where it is fixed, and granularity."""
    spec = point.grid_spec
    signs = {True: " signed", False: " unsigned", None: ""}
    sign = signs[spec.signed] if spec.mode == "symmetric" else ""
    axis = point.granularity.axis
    granularity = "per tensor" if axis is None else f"per channel {axis}"
    return f"{spec.mode}{sign}, {granularity}"


def _pairs(setup: QuantizerSetup, group: QuantizerGroup) -> list[tuple[int, int]]:
    """(weight bits, activation bits) that the runtime allows to the group's points; none where all are."""
    return sorted({pair for name in group.points for pair in setup.pairs.get(name, ())})


def widths_grid(setup: QuantizerSetup, model: CostModel) -> Grid:
    """Costs at each uniform weight width, and what every budget can reach."""
    kinds = list(model.lowest)
    percentages = [f"{kind} %" for kind in model.reference]
    costs_of = {}
    for scheme, costs in _uniform_costs(setup, model).items():
        costs_of[f"{scheme} bits" if scheme.is_plain else str(scheme)] = costs
    rows: list[Row] = []
    for name, costs in {**costs_of, "lowest": model.lowest, "highest": model.highest}.items():
        texts = [cost(kind, costs[kind]) for kind in kinds]
        # A model without such layers has a reference of 0, of which nothing is a share.
        shares = [f"{costs[kind] / base:.2%}" if base else "" for kind, base in model.reference.items()]
        rows.append(Row(name, (*texts, *shares)))
    return Grid(("weights at", *kinds, *percentages), tuple(rows))


def _uniform_costs(setup: QuantizerSetup, model: CostModel) -> dict[Scheme, dict[str, float]]:
    """Each scheme that some weight may take → what all weights at it, or next to it, cost."""
    groups = [group for group in setup.groups.values() if setup.group_kind(group.id) == "weight"]
    schemes = sorted({scheme for group in groups for scheme in group.schemes})
    return {scheme: model.costs(BitAssignment.uniform(setup, scheme)) for scheme in schemes}


def schemes_grid(stored: Mapping[str, Mapping[str, str]]) -> Grid:
    """What became of every scheme at every weight: a row a weight, a column a scheme."""
    schemes = sorted({Scheme.of(scheme) for texts in stored.values() for scheme in texts})
    rows: list[Row] = []
    for name, texts in stored.items():
        rows.append(Row(name, tuple(texts.get(str(scheme), "") for scheme in schemes)))
    return Grid(("weight", *map(str, schemes)), tuple(rows))


def inspection(
    setup: QuantizerSetup, model: CostModel, stored: Mapping[str, Mapping[str, str]]
) -> dict[str, object]:
    """What `inspect --json` prints.

    Args:
        setup: points and groups.
        model: their costs.
        stored: weight → scheme → what became of it; empty where there are widths alone.
    """
    uniform = {str(scheme): costs for scheme, costs in _uniform_costs(setup, model).items()}
    return {
        "groups": {group.id: _group_facts(setup, group) for group in setup.groups.values()},
        "unsupported": list(setup.unsupported),
        "coverage": _coverage_facts(setup.coverage),
        "uniform": uniform,
        "achievable": {kind: [model.lowest[kind], model.highest[kind]] for kind in model.lowest},
        "reference": model.reference,
        "stored_as": stored,
    }


def _coverage_facts(coverage: Coverage | None) -> dict[str, object] | None:
    if coverage is None:
        return None
    totals = {"weights": coverage.num_weights, "quantizable": coverage.num_quantizable}
    return totals | coverage.as_dict()


def _group_facts(setup: QuantizerSetup, group: QuantizerGroup) -> dict[str, object]:
    points = [setup.points[name] for name in group.points]
    return {
        "kind": setup.group_kind(group.id),
        "points": list(group.points),
        "bit_widths": list(group.bit_widths),
        "schemes": [scheme.as_json for scheme in group.schemes],
        "elements": sum(point.num_elements for point in points),
        "macs": sum(point.macs for point in points),
        "mode": points[0].grid_spec.mode,
        "axis": points[0].granularity.axis,
        "pairs": _pairs(setup, group),
        "reason": group.reason,
    }


def excess_lines(budgets: Iterable[Budget], model: CostModel, costs: Mapping[str, float]) -> Sequence[str]:
    """One line a budget: what is used, of what limit, and the share of it.

    Args:
        budgets: absolute, or relative to the float model.
        model: what the budgets are relative to.
        costs: kind → what an assignment costs.
    """
    lines = []
    for budget in budgets:
        limit, value = budget.absolute(model), costs[budget.kind]
        share = 1 + budget.excess(value, limit)
        lines.append(f"{budget.text}: {cost(budget.kind, value)} of {cost(budget.kind, limit)} ({share:.1%})")
    return lines
