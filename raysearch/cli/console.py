"""What the commands print: tables and progress, rich on a terminal and plain elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from raysearch.artifacts import redact
from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    QuantizationPoint,
    QuantizerGroup,
    QuantizerSetup,
    RunResult,
    RunStatus,
    SensitivityTable,
)
from raysearch.reporting import sensitivity_grid, sketch_note

LINE_EVERY_SECONDS = 30.0


def out() -> Console:
    """Standard output; wide enough for whole names where it is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, width=160)


class ProgressLines:
    """A listener: one moving bar on a terminal, else a line a stage and every 30 seconds, on stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self._stage = ""
        self._printed = 0.0
        self._console = console or Console(stderr=True, highlight=False)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
        )
        self._live = Progress(*columns, console=self._console, transient=True)
        self._bar = self._live.add_task("starting", total=None)
        if self._console.is_terminal:
            self._live.start()

    def __call__(self, status: RunStatus) -> None:
        """Show a status."""
        if status.state != "running":
            self.close()
            return
        text = f"{status.run_id}  {progress_text(status)}"
        is_new = status.stage != self._stage
        self._stage = status.stage
        if self._console.is_terminal:
            if is_new:
                self._live.reset(self._bar)
            self._live.update(self._bar, description=text, completed=status.done, total=status.total or None)
            return
        now = time.monotonic()
        if is_new or now - self._printed > LINE_EVERY_SECONDS:
            self._printed = now
            self._console.print(text, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Take the moving bar away."""
        if self._console.is_terminal:
            self._live.stop()


def progress_text(status: RunStatus) -> str:
    """Stage, units done of all, rate and remaining time, as far as they are known.

    Example:
        >>> status = RunStatus("r", "running", "search", 30, 90, rate=0.5, remaining_seconds=120.0)
        >>> progress_text(status)
        'search 30/90, 0.50 units/s, 2m 00s left'
    """
    parts = [f"{status.stage} {status.done}/{status.total}" if status.total else status.stage]
    if status.rate and status.state == "running":
        parts.append(f"{status.rate:.2f} units/s" if status.rate < 10 else f"{status.rate:.0f} units/s")
        if status.remaining_seconds:
            parts.append(f"{duration_text(status.remaining_seconds)} left")
    return ", ".join(parts)


def duration_text(seconds: float) -> str:
    """Seconds as people read them.

    Example:
        >>> duration_text(7), duration_text(90), duration_text(7260)
        ('7s', '1m 30s', '2h 01m')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m {rest:02d}s" if minutes < 60 else f"{minutes // 60}h {minutes % 60:02d}m"


def cost_text(kind: str, value: float) -> str:
    """A cost with its unit."""
    if kind == "latency":
        return f"{value * 1e3:.4g} ms"
    if kind in ("size", "activation_memory"):
        return f"{value / 1024:.2f} KiB" if value < 2**20 else f"{value / 2**20:.3f} MiB"
    if kind == "bops":
        return f"{value / 1e9:.4g} G" if value >= 1e9 else f"{value / 1e6:.4g} M"
    return f"{value:.3f}"


def result_table(result: RunResult) -> Table:
    """Float against quantized."""
    table = Table(title=f"run {result.run_id}")
    for column in ("", "float", "quantized"):
        table.add_column(column, justify="left" if not column else "right")
    for name in result.quantized_metrics:
        before = result.float_metrics.get(name)
        shown = "" if before is None else f"{before:.6g}"
        table.add_row(name, shown, f"{result.quantized_metrics[name]:.6g}")
    for kind, value in result.costs.items():
        table.add_row(kind, "", cost_text(kind, value))
    return table


def front_table(front: Sequence[Mapping[str, Any]]) -> Table:
    """Trials of a front, by cost."""
    kinds = list(front[0]["costs"])
    table = Table("trial", "measured", *kinds, title="front")
    for row in front:
        costs = [cost_text(kind, row["costs"][kind]) for kind in kinds]
        table.add_row(str(row["trial"]), f"{row['value']:.6g}", *costs)
    return table


def assignment_table(setup: QuantizerSetup, assignment: Mapping[str, int]) -> Table:
    """Group → bit-width."""
    table = Table("group", "kind", "bits")
    for name, bits in assignment.items():
        table.add_row(name, setup.group_kind(name), str(bits))
    return table


def layers_table(setup: QuantizerSetup) -> Table:
    """Every group with its points, grid and widths, and what stays float."""
    table = Table(
        "group",
        "kind",
        "shape",
        "elements",
        "MACs",
        "quantizer",
        "bit-widths",
        "pairs",
        "shares its width with",
    )
    for group in setup.groups.values():
        points = [setup.points[name] for name in group.points]
        first = points[0]
        table.add_row(
            group.id,
            first.kind,
            "×".join(map(str, first.shape)),
            f"{sum(p.num_elements for p in points):,}",
            f"{sum(p.macs for p in points):,}" if first.kind == "weight" else "",
            grid_text(first),
            ", ".join(map(str, group.bit_widths)),
            " ".join(f"{weight}/{active}" for weight, active in _pairs(setup, group)),
            ", ".join(group.points[1:]),
        )
    for name in setup.unsupported:
        table.add_row(name, "weight", "", "", "", "none: a recurrent layer", "float", "", "")
    return table


def grid_text(point: QuantizationPoint) -> str:
    """Mode, sign where it is fixed, and granularity."""
    spec = point.grid_spec
    signs = {True: " signed", False: " unsigned", None: ""}
    sign = signs[spec.signed] if spec.mode == "symmetric" else ""
    where = "per tensor" if point.axis is None else f"per channel {point.axis}"
    return f"{spec.mode}{sign}, {where}"


def _pairs(setup: QuantizerSetup, group: QuantizerGroup) -> list[tuple[int, int]]:
    return sorted({pair for name in group.points for pair in setup.pairs.get(name, ())})


def widths_table(setup: QuantizerSetup, model: CostModel) -> Table:
    """Costs at each uniform weight width, and what every budget can reach."""
    kinds = list(model.lowest)
    table = Table("weights at", *kinds, *(f"{kind} %" for kind in model.reference))
    widths = sorted({b for g in setup.groups.values() for b in g.bit_widths if _is_weight(setup, g.id)})
    rows = [(f"{bits} bits", model.costs(BitAssignment.uniform(setup, bits))) for bits in widths]
    rows += [("lowest", model.lowest), ("highest", model.highest)]
    for name, costs in rows:
        relative = [f"{costs[kind] / base:.2%}" if base else "" for kind, base in model.reference.items()]
        table.add_row(name, *(cost_text(kind, costs[kind]) for kind in kinds), *relative)
    return table


def inspection(setup: QuantizerSetup, model: CostModel) -> dict[str, object]:
    """What `inspect --json` prints."""
    widths = sorted({b for g in setup.groups.values() for b in g.bit_widths if _is_weight(setup, g.id)})
    return {
        "groups": {
            g.id: {
                "kind": setup.group_kind(g.id),
                "points": list(g.points),
                "bit_widths": list(g.bit_widths),
                "elements": sum(setup.points[p].num_elements for p in g.points),
                "macs": sum(setup.points[p].macs for p in g.points),
                "mode": setup.points[g.points[0]].grid_spec.mode,
                "axis": setup.points[g.points[0]].axis,
                "pairs": _pairs(setup, g),
            }
            for g in setup.groups.values()
        },
        "unsupported": list(setup.unsupported),
        "uniform": {str(bits): model.costs(BitAssignment.uniform(setup, bits)) for bits in widths},
        "achievable": {kind: [model.lowest[kind], model.highest[kind]] for kind in model.lowest},
        "reference": model.reference,
    }


def sensitivity_table(
    setup: QuantizerSetup, table: SensitivityTable, assignment: Mapping[str, int] | None
) -> Table:
    """Traces, perturbations and responses, a row a group."""
    grid = sensitivity_grid(setup, table, assignment)
    shown = Table(*grid.columns, title=f"sensitivity {table.fingerprint}", caption=sketch_note(table))
    for row in grid.rows:
        shown.add_row(row.name, *row.cells)
    return shown


def excess_lines(budgets: Iterable[Budget], model: CostModel, costs: Mapping[str, float]) -> Sequence[str]:
    """One line a budget: use, limit, slack."""
    lines = []
    for budget in budgets:
        limit = budget.absolute(model)
        used = costs[budget.kind]
        lines.append(
            f"{budget.text}: {cost_text(budget.kind, used)} of {cost_text(budget.kind, limit)} "
            f"({1 + budget.excess(used, limit):.1%})"
        )
    return lines


def place_text(uri: str) -> str:
    """A location without credentials."""
    return redact(uri)


def _is_weight(setup: QuantizerSetup, group: str) -> bool:
    return setup.group_kind(group) == "weight"
