"""What `Learner.find` returns: every cycle that was trained, and the best of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onecycle.display import cell, head
from onecycle.tables import data_frame, html_table
from onecycle.tuning import picture
from onecycle.tuning.space import Space, described, epochs_of, shown

if TYPE_CHECKING:
    from onecycle.learner import Learner

Row = dict[str, Any]
COLUMNS = ("trial", "rung", "epochs", "valid_loss", "seconds", "kept")


class Search:
    """The result of a search: `best`, `learner`, `table` and `plot`.

    Attributes:
        best: the configuration that was best by the longest cycle, by name.
        score: its score, after a complete cycle of the last rung.
        learner: the Learner that was trained so.
        table: a dict for every cycle: trial and rung from 1, epochs, the parameters, valid_loss and
            the metrics at the end of the cycle (nan where it diverged), seconds, and kept: whether
            it went on to the next rung or, in the last, is the best.
        metric: the column that was judged by, and higher_is_better which way.
        rungs: the epochs of a cycle in each rung.
        study: Optuna's study, None without it.
        interrupted: whether Ctrl-C ended the search before its time.

    >>> from onecycle import Learner, data, models
    >>> learn = Learner(data.digits(), models.simple_cnn((1, 8, 10)))
    >>> with learn.no_logging():
    ...     found = learn.find({"max_lr": [1e-6, 1e-2]}, epochs=1)
    >>> found.best, [row["kept"] for row in found.table]
    ({'max_lr': 0.01}, [False, True])
    """

    def __init__(
        self,
        table: list[Row],
        space: Space,
        learner: Learner,
        rungs: Sequence[int],
        metric: str = "valid_loss",
        higher: bool = False,
        study: Any = None,
        interrupted: bool = False,
    ) -> None:
        self.table, self.space, self.learner = table, space, learner
        self.rungs, self.metric, self.higher_is_better = list(rungs), metric, higher
        self.study, self.interrupted = study, interrupted

    @property
    def row(self) -> Row:
        """The row of the best configuration at its last rung."""
        return max(self.table, key=self._rank)

    @property
    def best(self) -> Row:
        """The best configuration by name."""
        return {name: self.row[name] for name in self.space}

    @property
    def score(self) -> float:
        """The score of the best."""
        return float(self.row[self.metric])

    def to_pandas(self) -> Any:
        """Return the table as a pandas DataFrame, a row for every cycle.

        Raises:
            ImportError: pandas is not installed.
        """
        return data_frame(self.table)

    def plot(self, ax: Any = None) -> Any:
        """Draw the score against the epochs of a cycle and against each parameter.

        Args:
            ax: axes for the first picture, which is then all that is drawn.

        Returns:
            The axes: of the epochs, and of each parameter.
        """
        return picture.search(self, ax)

    def __repr__(self) -> str:
        """Return the best and what it took."""
        row, epochs = self.row, sum(row["epochs"] for row in self.table)
        best = f"{self.metric} {self.score:.4g} after {epochs_of(row['epochs'])}"
        cost = f"{len(self.table)} cycles, {epochs_of(epochs)}, {self._seconds:.0f} s"
        return f"Search({best} by {described(self.best)}; {cost})"

    def _repr_html_(self) -> str:
        """Return the table that a notebook shows."""
        names = list(dict.fromkeys(name for row in self.table for name in row))
        rows = [[self._cell(name, row) for name in names] for row in self.table]
        return html_table(rows, [head(name) for name in names], kind="onecycle")

    @property
    def _seconds(self) -> float:
        return float(sum(row["seconds"] for row in self.table))

    def _rank(self, row: Row) -> tuple[bool, int, float]:
        """Return what is largest for the best: with a score, of the last rung, the best score."""
        value = row.get(self.metric, math.nan)
        good = math.isfinite(value)
        return good, row["rung"], (value if self.higher_is_better else -value) if good else 0.0

    def _cell(self, name: str, row: Row) -> str:
        if name == "kept":
            return "yes" if row[name] else ""
        value = row.get(name, "")
        return shown(value) if name in self.space else cell(name, value)
