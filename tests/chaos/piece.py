"""What came of a part of the chaos, to be kept in a file and added to others."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.chaos.soak import Footprint
from tests.chaos.tally import Tally


@dataclass
class Piece:
    """What one command did.

    Attributes:
        commands: that did it.
        tally: of inputs and damages.
        signals: that hit a run.
        runs_after_kills: that went on until they were done.
        footprints: after each run of a soak.
        wrong: what was other than it should be, for the one who mends it.
    """

    commands: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    signals: int = 0
    runs_after_kills: int = 0
    footprints: list[Footprint] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Piece) -> None:
        """Take over what another piece counted."""
        self.commands += other.commands
        self.tally.add(other.tally)
        self.signals += other.signals
        self.runs_after_kills += other.runs_after_kills
        self.footprints += other.footprints
        self.wrong += other.wrong

    def save(self, path: Path) -> None:
        """Write it to a file."""
        content = {
            "commands": self.commands,
            "counts": [[*key, number] for key, number in self.tally.counts.items()],
            "escaped": self.tally.escaped,
            "slowest": self.tally.slowest,
            "signals": self.signals,
            "runs_after_kills": self.runs_after_kills,
            "footprints": [asdict(footprint) for footprint in self.footprints],
            "wrong": self.wrong,
        }
        path.write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, path: Path) -> Piece:
        """Read what `save` wrote."""
        content = json.loads(path.read_text())
        tally = Tally(escaped=content["escaped"], slowest=content["slowest"])
        for kind, outcome, number in content["counts"]:
            tally.counts[kind, outcome] += number
        return cls(
            content["commands"],
            tally,
            content["signals"],
            content["runs_after_kills"],
            [Footprint(**values) for values in content["footprints"]],
            content["wrong"],
        )

    def page(self) -> str:
        """Tables of it, for people."""
        lines = ["# Chaos", "", f"Python {platform.python_version()}. A piece a command:", "", "```"]
        lines += [*self.commands, "```", ""]
        if self.tally.counts:
            lines += [*_table_of(self.tally), ""]
        if self.signals:
            lines.append(f"Kills: {self.signals} signals at any moment of a run that then goes on;")
            lines += [f"{self.runs_after_kills} runs were done in the end, and none differs.", ""]
        if self.footprints:
            lines += [*_soak_table(self.footprints), ""]
        wrong = [*self.tally.escaped, *self.wrong]
        lines += [f"Other than the same result or a named error: {len(wrong)}.", ""]
        lines += [f"- {text}" for text in wrong]
        return "\n".join(lines).rstrip() + "\n"


def _table_of(tally: Tally) -> list[str]:
    """A row a kind of input."""
    rows = [
        "| input | number | read, or the same | named error | anything else | slowest, CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for kind in sorted({kind for kind, _ in tally.counts}):
        counts = [tally.counts[kind, outcome] for outcome in ("read", "named", "escaped")]
        cells = [f"{number:,}" for number in (sum(counts), *counts)]
        rows.append(f"| {kind} | {' | '.join(cells)} | {tally.slowest[kind]:.2f} |")
    return rows


def _soak_table(footprints: Sequence[Footprint]) -> list[str]:
    """The first runs of a soak, and every tenth."""
    rows = ["| after run | MiB | threads | file handles |", "|---|---|---|---|"]
    for number, footprint in enumerate(footprints, start=1):
        if number <= 2 or number % 10 == 0 or number == len(footprints):
            values = f"{footprint.megabytes:.0f} | {footprint.threads} | {footprint.handles}"
            rows.append(f"| {number} | {values} |")
    return rows
