"""Rows of a page of checks and measurements, printed as they come."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the page; `ok` is None where nothing is checked."""

    check: str
    value: float | str | bool
    limit: str = ""
    ok: bool | None = None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)
        verdict = {None: "", True: "ok", False: "**failed**"}[self.ok]
        return self.check, value, self.limit, verdict


class Rows(list[Row]):
    """The rows so far, each printed as it comes."""

    def tell(self, check: str, value: float | str | bool) -> None:
        self._add(Row(check, value))

    def at_most(self, check: str, value: float, limit: float) -> None:
        self._add(Row(check, float(value), f"≤ {limit:g}", bool(value <= limit)))

    def at_least(self, check: str, value: float, limit: float) -> None:
        self._add(Row(check, float(value), f"≥ {limit:g}", bool(value >= limit)))

    def true(self, check: str, value: bool) -> None:
        self._add(Row(check, value, "True", value))

    def broken(self, check: str, error: Exception) -> None:
        text = repr(error).replace("\n", " ").replace("|", "/")
        self._add(Row(check, text[:300], "", False))

    def _add(self, row: Row) -> None:
        self.append(row)
        check, value, limit, verdict = row.cells
        print(f"{check:<70} {value:>12} {limit:>9} {verdict}", flush=True)
