"""What the commands print: tables and progress, rich on a terminal and plain elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from raysearch.artifacts import redact
from raysearch.records import (
    BitAssignment,
    Budget,
    CostModel,
    QuantizerSetup,
    RunResult,
    RunStatus,
    SensitivityTable,
)
from raysearch.report import sensitivity_grid

LINE_EVERY_SECONDS = 30.0


def out() -> Console:
    """Standard output; wide enough for whole names where it is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, width=160)


class ProgressLines:
    """A listener: one moving line on a terminal, else a line a stage and every 30 seconds, on stderr."""

    def __init__(self) -> None:
        self._stage = ""
        self._printed = 0.0
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.status("starting") if self._console.is_terminal else None
        if self._live:
            self._live.start()

    def __call__(self, status: RunStatus) -> None:
        """Show a status."""
        share = f" {status.done}/{status.total}" if status.total else ""
        text = f"{status.run_id}  {status.stage}{share}" if status.state == "running" else ""
        if self._live:
            if text:
                self._live.update(text)
            else:
                self._live.stop()
            return
        now = time.monotonic()
        if text and (status.stage != self._stage or now - self._printed > LINE_EVERY_SECONDS):
            self._stage, self._printed = status.stage, now
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the moving line away."""
        if self._live:
            self._live.stop()


def cost_text(kind: str, value: float) -> str:
    """A cost with its unit."""
    if kind == "size":
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


def assignment_table(setup: QuantizerSetup, assignment: Mapping[str, int]) -> Table:
    """Group → bit-width."""
    table = Table("group", "kind", "bits")
    for name, bits in assignment.items():
        table.add_row(name, setup.group_kind(name), str(bits))
    return table


def layers_table(setup: QuantizerSetup) -> Table:
    """Every group with its points and widths."""
    table = Table("group", "kind", "shape", "elements", "MACs", "bit-widths", "shares its width with")
    for group in setup.groups.values():
        points = [setup.points[name] for name in group.points]
        first = points[0]
        table.add_row(
            group.id,
            first.kind,
            "×".join(map(str, first.shape)),
            f"{sum(p.num_elements for p in points):,}",
            f"{sum(p.macs for p in points):,}" if first.kind == "weight" else "",
            ", ".join(map(str, group.bit_widths)),
            ", ".join(group.points[1:]),
        )
    return table


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
            }
            for g in setup.groups.values()
        },
        "uniform": {str(bits): model.costs(BitAssignment.uniform(setup, bits)) for bits in widths},
        "achievable": {kind: [model.lowest[kind], model.highest[kind]] for kind in model.lowest},
        "reference": model.reference,
    }


def sensitivity_table(
    setup: QuantizerSetup, table: SensitivityTable, assignment: Mapping[str, int] | None
) -> Table:
    """Traces, perturbations and responses, a row a group."""
    grid = sensitivity_grid(setup, table, assignment)
    shown = Table(*grid.columns, title=f"sensitivity {table.fingerprint}")
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
            f"({used / limit:.1%})"
        )
    return lines


def place_text(uri: str) -> str:
    """A location without credentials."""
    return redact(uri)


def _is_weight(setup: QuantizerSetup, group: str) -> bool:
    return setup.group_kind(group) == "weight"
