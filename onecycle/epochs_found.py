"""What `Learner.epoch_find` returns: a measure over budgets, and how many epochs it asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import budget, checks, plot_epoch_find
from onecycle.budget import Curve, Guess
from onecycle.tables import html_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


KINDS = {"averaged": "averaged weights", "cycle": "complete 1cycles"}


@dataclass(frozen=True)
class Measured:
    """The loss or a metric of every read-out, sample by sample.

    Args:
        averaged: of averaged weights, (S, K, N) for S seeds, K budgets and N validation samples,
            or (K, N) for one seed.
        annealed: of annealed weights, by budget, (S, N) or (N,); budgets may be left out.
        higher_is_better: of the values, as of an accuracy.

    >>> Measured([[1.0, 0.8], [0.5, 0.7]], {2: [0.5, 0.6]}).annealed[2]
    [0.5, 0.6]
    """

    averaged: Any
    annealed: Mapping[int, Any] = field(default_factory=dict)
    higher_is_better: bool = False


class EpochFind:
    """The result of `epoch_find`: what a run of 1, 2, 4, ... epochs would reach, and which to take.

    Args:
        budgets: epochs at which the run was read out, rising.
        measures: "loss", and metrics by name.
        lr: the learning rate of the 1cycle that the budgets stand for.
        by: name of the measure that decides.
        weights: (N,), samples behind each value, where values are means of batches.
        tol: relative gain of a doubling below which it is not worth it.
        target: a value of the deciding measure; the smallest budget that reaches it is taken.
        seconds: of training for one epoch.
        cost: epochs that were trained, over the largest budget.
        kind: "averaged", or "cycle" where `averaged` is of complete 1cycles; columns are called so.
        finish: is called with a budget and leaves a finished model of that many epochs.

    Attributes:
        epochs: what to train for: the smallest budget that reaches `target`; without one, or where
            none does, the smallest within one standard error of the best.
        knee: the smallest budget whose doubling gains less than `tol`, by averaged weights; None
            where every doubling gains more.
        verdict: where it goes, in words.
        table: a dict for each budget, as `pandas.DataFrame` takes it: epochs; averaged_loss and
            annealed_loss, and the same for each metric, nan where nothing was annealed; se and
            annealed_se, the standard errors of the difference from the best budget by the measure
            that decides; gain on the budget before, per doubling and relative, and gain_se, both by
            averaged weights; minutes of a run.
        averaged, annealed: a `budget.Curve` by name of the measure; annealed lacks those without.
        judged: the curve that decides, of averaged weights.

    Annealed and averaged weights are never compared with each other. The averaged ones decide:
    there is a value at every budget, and where complete 1cycles are the judge they choose better
    than short anneals do (`tests/benchmarks/epochs.py`). The annealed ones tell what `finish`
    reaches.

    With one seed the standard errors are those of the validation sample only: another seed may
    differ by more. The best of a few budgets was chosen on that sample: confirm it on a test set.
    The best learning rate falls as budgets grow, so one rate for all wrongs either end a little.

    Raises:
        ValueError: an argument does not fit the others, or the deciding measure is nowhere finite.

    >>> loss = Measured([[0.9, 1.1], [0.5, 0.6], [0.4, 0.45], [0.41, 0.44]])
    >>> EpochFind([1, 2, 4, 8], {"loss": loss}, lr=0.1)
    EpochFind(4 epochs, knee 4, flat after 4)
    """

    def __init__(
        self,
        budgets: Any,
        measures: Mapping[str, Measured],
        *,
        lr: Any,
        by: str = "loss",
        weights: Any = None,
        tol: float = budget.TOL,
        target: float | None = None,
        seconds: float = math.nan,
        cost: float = math.nan,
        kind: str = "averaged",
        finish: Callable[[int], None] | None = None,
    ) -> None:
        self.by = checks.choice("by", by, list(measures))
        self.kind = checks.choice("kind", kind, list(KINDS))
        self.tol = checks.real("tol", tol, low=0.0)
        self.target = None if target is None else checks.real("target", target)
        self.averaged = {
            name: Curve(budgets, m.averaged, weights, higher_is_better=m.higher_is_better)
            for name, m in measures.items()
        }
        self.annealed = {
            name: _annealed(m, self.averaged[name]) for name, m in measures.items() if m.annealed
        }
        self.lr, self.seconds, self.cost, self._finish = lr, seconds, cost, finish
        self.judged = self.averaged[by]
        if np.isinf(self.judged.costs).all():
            raise ValueError(f"{by} is finite at no budget: train at a lower lr")
        self.knee = budget.knee(self.averaged[by], self.tol)
        reached = None if target is None else budget.smallest_reaching(self.judged, target)
        self.epochs = reached or budget.smallest_within_one_se(self.judged)
        self.verdict = self._verdict(reached)
        self.table = self._table()

    def finish(self, epochs: int | None = None) -> None:
        """Make the learner's model the finished one of a run of `epochs`, at little cost.

        Args:
            epochs: one of the budgets; None means the one that was chosen.

        Raises:
            ValueError: `epochs` is no budget, or this is a copy, which keeps numbers alone.

        >>> loss = Measured([[0.9, 1.1], [0.5, 0.6]])
        >>> EpochFind([1, 2], {"loss": loss}, lr=0.1, finish=print).finish()
        2
        """
        epochs = self.epochs if epochs is None else checks.integer("epochs", epochs)
        budgets = self.averaged[self.by].budgets
        if epochs not in budgets:
            raise ValueError(f"epochs must be one of {', '.join(map(str, budgets))}, got {epochs}")
        if self._finish is None:
            raise ValueError(
                f"finish: this result keeps no weights, call fit_one_cycle({epochs}, {self.lr!r})"
            )
        self._finish(epochs)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the measure that decides over budgets, and beside it the loss; return the axes.

        Args:
            ax: axes for the measure that decides, alone.
        """
        return plot_epoch_find.budgets(self, ax)

    @property
    def label(self) -> str:
        """What was read out, in words."""
        return KINDS[self.kind]

    @property
    def guess(self) -> Guess | None:
        """What the next doubling may bring; None without a trend that reaches the last budget."""
        return budget.extrapolate(self.judged)

    def __getstate__(self) -> dict[str, Any]:
        """Copy and pickle the numbers; the weights stay with the learner."""
        return {**vars(self), "_finish": None}

    def __repr__(self) -> str:
        """Return the choice and the verdict in a line."""
        knee = "no knee" if self.knee is None else f"knee {self.knee}"
        epochs = f"{self.epochs} epoch{'s' * (self.epochs > 1)}"
        return f"{type(self).__name__}({epochs}, {knee}, {self.verdict})"

    def _repr_html_(self) -> str:
        """Return the line and the table that a notebook shows."""
        head = [key for key in self.table[0] if any(not math.isnan(row[key]) for row in self.table)]
        rows = [
            ["" if math.isnan(row[key]) else f"{row[key]:.4g}" for key in head]
            for row in self.table
        ]
        return f"<p>{escape(repr(self))}</p>\n{html_table(rows, head, kind='onecycle-epoch-find')}"

    def _verdict(self, reached: int | None) -> str:
        """The sentence: the target, and where the curve goes."""
        text = budget.verdict(self.judged, self.tol)
        text = text if self.by == "loss" else f"by {self.by} {text}"
        if self.target is None:
            return text
        goal = f"{self.by} {self.target:g}"
        return f"no budget reaches {goal}; {text}" if reached is None else f"reaches {goal}; {text}"

    def _table(self) -> list[dict[str, float]]:
        """The rows, from columns."""
        averaged, annealed = self.averaged[self.by], self.annealed.get(self.by)
        budgets = averaged.budgets
        columns: dict[str, list[float]] = {}
        for name, curve in self.averaged.items():
            columns[f"{self.kind}_{name}"] = curve.means.tolist()
            columns[f"annealed_{name}"] = _spread(self.annealed.get(name), "means", budgets)
        columns["se"] = averaged.errors.tolist()
        columns["annealed_se"] = _spread(annealed, "errors", budgets)
        for name, values in zip(("gain", "gain_se"), budget.gains(averaged), strict=True):
            columns[name] = [math.nan, *values.tolist()]
        columns["minutes"] = [epochs * self.seconds / 60 for epochs in budgets]
        return [
            {"epochs": epochs, **{name: values[k] for name, values in columns.items()}}
            for k, epochs in enumerate(budgets)
        ]


def _annealed(measured: Measured, averaged: Curve) -> Curve:
    """The curve of the annealed budgets, as many seeds and samples as the averaged one has."""
    budgets = sorted(measured.annealed)
    rows = [np.atleast_2d(measured.annealed[b]) for b in budgets]
    seeds, _, samples = averaged.values.shape
    fit = {row.shape for row in rows} == {(seeds, samples)}
    if not fit or not set(budgets) <= set(averaged.budgets):
        raise ValueError(
            f"annealed must hold arrays ({seeds} seeds, {samples} samples) by budgets out of "
            f"{averaged.budgets}, got { ({b: np.shape(v) for b, v in measured.annealed.items()}) }"
        )
    values = np.stack(rows, axis=1)
    return Curve(budgets, values, averaged.weights, higher_is_better=averaged.higher_is_better)


def _spread(curve: Curve | None, column: str, budgets: tuple[int, ...]) -> list[float]:
    """A column of a curve for all budgets; nan for those that it lacks."""
    there = {} if curve is None else dict(zip(curve.budgets, getattr(curve, column), strict=True))
    return [float(there.get(epochs, math.nan)) for epochs in budgets]
