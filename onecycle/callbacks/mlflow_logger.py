"""A log for MLflow."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from onecycle.tracking import Record, Tracker, cleaned, config, figures, flat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onecycle.learner import Learner

TAG = "onecycle_run"
METRICS, PARAMS = 1000, 100  # most that MLflow takes at once
LONGEST = 5000  # characters of a value that it takes


class MLflowLogger(Tracker):
    """Log to MLflow; needs `pip install "onecycle[mlflow]"`.

    The columns of the history and step/loss, step/lr, step/mom and step/grad_norm are metrics over
    steps, the settings params, and after each fit losses, learning rate and metrics are pictures
    among the artifacts. Where it goes is what `mlflow.set_tracking_uri` and `set_experiment` say. A
    run that is active already (`mlflow.start_run`) is used and left active; else one is active
    during each fit and ended after it, as FAILED where the fit did, and all fits of a learner go on
    with the same one. A param cannot change: what another fit has otherwise becomes a tag.

    A resumed run is the same run there, too, found by its tag "onecycle_run". What it has already
    is not written again, for it would be the same up to the seconds, so every step and epoch is
    there once.

    Args:
        name: of the run; None has MLflow find one.
        every: steps between two that are written.

    Attributes:
        run: value of the tag "onecycle_run".

    Raises:
        ValueError, TypeError: an argument out of its range.
        ImportError: when a fit begins, and mlflow is not installed.

    >>> log = MLflowLogger("baseline", every=50)
    """

    extra = "mlflow"

    def __init__(self, name: str | None = None, every: int = 10) -> None:
        super().__init__(every)
        self.name = name
        self._client: Any = None
        self._id = ""
        self._own = False

    def open(self, learn: Learner) -> None:
        """Start the run, or take the one that is active; write the settings."""
        import mlflow

        self._client = mlflow.MlflowClient()
        active = mlflow.active_run()
        self._id = (active or self._started()).info.run_id
        self._own = active is None
        # What an active run has can be of another learner.
        data = self._client.get_run(self._id).data
        again = data.tags.get(TAG) == self.run
        self.rows = max(self.rows, int(data.metrics.get("epoch", 0))) if again else 0
        self.steps = max(self.steps, self._last("step/loss")) if again else 0
        self._client.set_tag(self._id, TAG, self.run)
        self._settings(flat(config(learn)), data.params)

    def write(self, learn: Learner, records: list[Record]) -> None:  # noqa: ARG002
        """Write the numbers."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        # The names that are asked for in `open` last: where they are the others are, too.
        metrics = (
            Metric(cleaned(name), value, now, record.step)
            for record in records
            for name, value in reversed(record.scalars().items())
        )
        while block := list(islice(metrics, METRICS)):
            self._client.log_batch(self._id, metrics=block)

    def draw(self, learn: Learner) -> None:
        """Write the pictures."""
        for name, figure in figures(learn.recorder):
            self._client.log_figure(self._id, figure, f"{name}.png")

    def close(self, *, failed: bool) -> None:
        """End the run, unless it was active before."""
        import mlflow

        own, self._own, self._client = self._own, False, None
        if own:
            mlflow.end_run("FAILED" if failed else "FINISHED")

    def _started(self) -> Any:
        import mlflow

        wanted = f"tags.{TAG} = '{self.run}'"
        found = mlflow.search_runs(filter_string=wanted, output_format="list")
        if found:
            return mlflow.start_run(run_id=found[0].info.run_id)
        return mlflow.start_run(run_name=self.name, tags={TAG: self.run})

    def _last(self, name: str) -> int:
        return max((m.step for m in self._client.get_metric_history(self._id, name)), default=0)

    def _settings(self, settings: dict[str, Any], there: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        texts = {cleaned(name): str(value)[:LONGEST] for name, value in settings.items()}
        new = (Param(name, text) for name, text in texts.items() if name not in there)
        for params in _blocks(new):
            self._client.log_batch(self._id, params=params)
        other = (RunTag(k, v) for k, v in texts.items() if there.get(k, v) != v)
        for tags in _blocks(other):
            self._client.log_batch(self._id, tags=tags)


def _blocks(items: Iterator[Any]) -> Iterator[list[Any]]:
    while block := list(islice(items, PARAMS)):
        yield block
