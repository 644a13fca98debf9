"""What a run says of itself: its status while it lives, and its result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from raysearch.errors import StorageError
from raysearch.records.costs.text import cost, cost_name, number
from raysearch.records.typed_json import Count, read_json

TERMINAL_STATES = ("done", "failed", "cancelled")
STATES = ("running", *TERMINAL_STATES)


@dataclass(frozen=True)
class RunStatus:
    """`status.json`: always current, small, and written whole.

    Attributes:
        run_id: the run.
        state: "running", "done", "failed" or "cancelled".
        stage: the stage in progress, or the last one.
        done: finished units of the stage.
        total: all units of the stage; 0 while unknown.
        seconds: stage → seconds spent.
        updated: Unix time of this record.
        message: the error of a failed run, or a remark.
        rate: units a second over the last minute or so; 0 while unknown.
        remaining_seconds: until the stage's units are done at that rate; None while unknown.
        details: of the search "best": what is measured → its best value so far; of training, as far as it is
            known: "epoch" (from 1), "epochs", "loss", "learning_rate", "samples_per_second", and
            "validation": metric → value.
    """

    run_id: str
    state: str
    stage: str = ""
    done: Count = 0
    total: Count = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    updated: float = 0.0
    message: str = ""
    rate: float = 0.0
    remaining_seconds: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The status as JSON text."""
        data = asdict(self)
        # Statuses of before there were any lack them.
        if not self.details:
            del data["details"]
        return json.dumps(data, indent=1)

    @classmethod
    def from_json(cls, text: str) -> RunStatus:
        """Read what `to_json` wrote.

        Raises:
            StorageError: the text is damaged.
        """
        status = cls(**read_json(cls, text, "status.json"))
        if status.state not in STATES:
            raise StorageError(
                f"status.json is damaged: state is '{status.state:.50}'; known: {', '.join(STATES)}."
            )
        return status


@dataclass(frozen=True)
class RunResult:
    """The end of the walk; every path is absolute or a URI.

    Attributes:
        run_id: the run.
        storage: its folder.
        budget: the expressions as given.
        assignment: group id → bit-width.
        costs: kind → cost of the assignment.
        float_metrics: metric → value of the float model on the validation data.
        quantized_metrics: the same for the stripped model.
        model_dir: folder with the exported files.
        report: path of the HTML report; "" when jinja2 is not installed.
        seconds: stage → seconds.
        notes: plain statements about what was left out, such as QAT without training data.
        front: the trials that no other beats in both measured value and the asked front's cost, by cost:
            "trial", "value", "costs", "assignment"; empty when no front was asked for.
        least_cost: see `LeastCost`, with `trained_drop`; empty when no cost was minimised.
        baselines: what stands beside the answer → its metrics on the validation data: the best uniform
            assignment within the budgets, the answer with rounded weights alone, and before its training.
        test_metrics: "float" and "quantized" → metric → value on the test data, by which nothing was chosen;
            empty when the task has none.
        standard_errors: "float", "quantized", "test_float" and "test_quantized" → metric → standard error
            over samples, of metrics that have one.
        finalists: of short trainings of the search's best assignments, best after training first: "trial",
            "place" (in the search, from 1), "value" (what it measured), "before" and "after" (metric → value
            on the validation data), "failure"; empty when none were asked for.
    """

    run_id: str
    storage: str
    budget: tuple[str, ...]
    assignment: Mapping[str, int | str]
    costs: Mapping[str, float]
    float_metrics: Mapping[str, float]
    quantized_metrics: Mapping[str, float]
    model_dir: str
    report: str
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    front: tuple[Mapping[str, Any], ...] = ()
    least_cost: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    test_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    standard_errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    finalists: tuple[Mapping[str, Any], ...] = ()

    def saved(self) -> Any:
        """The `SavedRun` of it: its tables, figures and records; see `raysearch.load_run`.

        Raises:
            StorageError: its files are damaged, or are no longer there.
        """
        # By its public name: a record knows no room above it.
        import raysearch

        return raysearch.load_run(self.storage)

    def load_model(self) -> Any:
        """The exported model, an `nn.Module`; see `SavedRun.load_model`.

        Raises:
            StorageError: its files are damaged, or are no longer there.
        """
        return self.saved().load_model()

    def _repr_html_(self) -> str:
        # What a notebook shows; names are the user's, and stay text.
        names = dict.fromkeys([*self.float_metrics, *self.quantized_metrics])
        rows = [
            f"<tr><td>{escape(name)}</td><td>{number(self.float_metrics.get(name))}</td>"
            f"<td>{number(self.quantized_metrics.get(name))}</td></tr>"
            for name in names
        ]
        rows += [
            f"<tr><td>{cost_name(kind)}</td><td></td><td>{cost(kind, value)}</td></tr>"
            for kind, value in self.costs.items()
        ]
        head = "<tr><th></th><th>float</th><th>quantized</th></tr>"
        return f"<p><b>{escape(self.run_id)}</b></p><table>{head}{''.join(rows)}</table>"

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, ready for JSON."""
        values = asdict(self)
        # Runs of before there were any lack them.
        for name in ("baselines", "test_metrics", "standard_errors", "finalists"):
            if not values[name]:
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunResult:
        """Read what `to_dict` gave, and JSON made lists of.

        Raises:
            TypeError: it is no result.
        """
        lists = {name: tuple(values.get(name, ())) for name in ("budget", "notes", "front", "finalists")}
        return cls(**{**values, **lists})
