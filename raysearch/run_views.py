"""What a notebook asks of a run: tables, figures, and a page that it shows by itself."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raysearch.artifacts import RunStore, codecs
from raysearch.errors import ConfigError, StorageError
from raysearch.reporting import ReportRecords, frames, plots, verdict
from raysearch.reporting.grids import Grid, summary_grid
from raysearch.reporting.page import lanes_of

if TYPE_CHECKING:
    import pandas as pd


class RunViews:
    """The records of a run as DataFrames and figures; each is read when it is asked for.

    Raises:
        StorageError: of any of them: the run has not come so far.
        ConfigError: pandas or Matplotlib is not installed (the extra `notebook`).
    """

    _store: RunStore

    @property
    def trials(self) -> pd.DataFrame:
        """A row a trial: state, source, measured and predicted value, and every cost."""
        return _as_pandas(frames.trials_frame(self._store.load(codecs.SEARCH).trials))

    @property
    def front(self) -> pd.DataFrame:
        """The trials that no other one beats in both value and the front's cost."""
        return _as_pandas(frames.trials_frame(self._store.load(codecs.SEARCH).front))

    @property
    def assignments(self) -> pd.DataFrame:
        """A row a trial: its scheme for each group."""
        search = self._store.load(codecs.SEARCH)
        return _as_pandas(frames.assignments_frame(search.trials, self._store.load(codecs.SETUP)))

    @property
    def sensitivity(self) -> pd.DataFrame:
        """A row an option: response, divergence and perturbation of a group at one scheme."""
        return _as_pandas(frames.sensitivity_frame(self._store.load(codecs.SENSITIVITY)))

    @property
    def assignment(self) -> pd.DataFrame:
        """A row a group: what was chosen, its shares of size, operations and predicted loss, its trace."""
        return _as_pandas(self.assignment_table())

    def assignment_table(self) -> pa.Table:
        """`assignment` as an Arrow table, without pandas."""
        return frames.assignment_frame(lanes_of(ReportRecords.load(self._store)))

    def plot_front(self, cost: str | None = None, axes: Any = None) -> Any:
        """Measured value over a cost.

        Args:
            cost: a kind of cost; default: that of the search's front.
            axes: Matplotlib's; default: of a new figure.
        """
        records = ReportRecords.load(self._store)
        if records.search is None or records.chosen is None:
            raise StorageError(f"the run '{records.run_id}' has no trials yet.")
        kind = cost or records.search.front_cost
        return plots.plot_front(records.search, records.chosen, kind, axes or plots.new_axes())

    def plot_bits(self, axes: Any = None) -> Any:
        """Bits of every weight and activation; `axes` as of `plot_front`."""
        return plots.plot_bits(lanes_of(ReportRecords.load(self._store)), axes or plots.new_axes(9.0))

    def plot_sensitivity(self, kind: str = "weight", axes: Any = None) -> Any:
        """Response of every option of one kind, "weight" or "activation"; `axes` as of `plot_front`."""
        return plots.plot_sensitivity(self._store.load(codecs.SENSITIVITY), kind, axes or plots.new_axes())

    def plot_history(self, metric: str | None = None, axes: Any = None) -> Any:
        """A metric over the epochs; default: the one that chose the epoch; `axes` as of `plot_front`."""
        tuned = self._store.load(codecs.FINE_TUNE)
        return plots.plot_history(tuned, metric or tuned.monitor, axes or plots.new_axes())

    def _repr_html_(self) -> str:
        records = ReportRecords.load(self._store)
        if records.result is None or records.setup is None:
            status = records.status
            how_far = "started" if status is None else f"{status.state}, {status.stage}"
            return f"<p><b>{escape(records.run_id)}</b>: {escape(how_far)}</p>"
        sentence = verdict(records.result, records.setup, records.chosen, records.manifest)
        return f"<p><b>{escape(sentence)}</b></p>{grid_html(summary_grid(records.setup, records.result))}"


def grid_html(grid: Grid) -> str:
    """A table as HTML; what stands in it is text."""
    lines = [_html_row("th", grid.columns)]
    lines += [_html_row("td", (row.name, *row.cells)) for row in grid.rows]
    return f"<table>{''.join(lines)}</table>"


def _html_row(tag: str, cells: tuple[str, ...]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _as_pandas(table: pa.Table) -> pd.DataFrame:
    try:
        import pandas  # noqa: F401 - looked for here, used by Arrow
    except ImportError as error:
        raise ConfigError(
            "this table is a pandas DataFrame, and pandas is not installed: pip install "
            "'raysearch[notebook]'."
        ) from error
    return table.to_pandas()
