"""A number that is followed from epoch to epoch: the best so far, and whether one is better."""

from __future__ import annotations

import difflib
import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from onecycle import checks, metrics

if TYPE_CHECKING:
    from onecycle.metrics import Metric
    from onecycle.trainer import Trainer

MODES = ("min", "max")


class Monitor:
    """Follows one column of the history over the epochs of a fit.

    A value is better than the best so far by more than `min_delta`, or it is not better; nan never
    is. `best` is the best value and `epoch` the one it is of, as the history counts; 0 is none yet.

    Args:
        monitor: "valid_loss", "train_loss" or the name of a metric; with the prefix of a callback
            that validates averaged weights also "ema_valid_loss" and the like.
        mode: "min" or "max" is better. None asks the metric, by its `higher_is_better`; of losses
            less is better.
        min_delta: what a value must be better by, in its own units.

    Raises:
        ValueError, TypeError: an argument out of its range.

    >>> accuracy = Monitor("accuracy", "max", min_delta=0.01)
    >>> accuracy.best = 0.9
    >>> accuracy.better(0.92), accuracy.better(0.905), accuracy.better(float("nan"))
    (True, False, False)
    """

    def __init__(
        self, monitor: str = "valid_loss", mode: str | None = None, min_delta: float = 0.0
    ) -> None:
        if not isinstance(monitor, str):
            raise TypeError(f"monitor must be the name of a column, got {monitor!r}")
        self.monitor = monitor
        self.mode = None if mode is None else checks.choice("mode", mode, MODES)
        self.min_delta = checks.real("min_delta", min_delta, low=0.0)
        self.best: float
        self.epoch: int
        self._reset(self.mode or "min")

    def begin(self, learn: Trainer) -> None:
        """Begin a fit of `learn`: there is no best value yet.

        Raises:
            ValueError: there will be no such column, or its metric does not say what is better.
        """
        known = columns(learn)
        if self.monitor not in known:
            raise ValueError(f"monitor must be {_choices(self.monitor, known, learn)}")
        self._reset(self.mode or _mode(self.monitor, known[self.monitor]))

    def better(self, value: float) -> bool:
        """Tell whether `value` is better than the best so far."""
        return self._sign * (self.best - value) > self.min_delta

    def look(self, learn: Trainer) -> bool | None:
        """Take the value of the epoch that is over; tell whether it is the best, None if it lacks.

        A row lacks it where the epoch, or its validation, was cancelled.
        """
        row = learn.recorder.history[-1]
        value = row.get(self.monitor)
        if value is None:
            return None
        improved = self.better(value)
        if improved:
            self.best, self.epoch = value, row["epoch"]
        return improved

    def judged(self, learn: Trainer) -> AbstractContextManager[None]:
        """Return the context in which the model has the weights that the column is of.

        They are averaged ones where the column has the prefix of a callback that averages.
        """
        for callback in averaging(learn):
            if self.monitor in (f"{callback.prefix}_{name}" for name in validated(learn)):
                averaged: AbstractContextManager[None] = callback.applied(learn)
                return averaged
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its epoch."""
        return {"best": self.best, "epoch": self.epoch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.best, self.epoch = state["best"], state["epoch"]

    def _reset(self, mode: str) -> None:
        self._sign = 1.0 if mode == "min" else -1.0
        self.best, self.epoch = self._sign * math.inf, 0


def columns(learn: Trainer) -> dict[str, Metric | None]:
    """Return what the rows of a fit of `learn` can be followed by: metrics by name, losses None."""
    scores = validated(learn)
    averaged = {
        f"{callback.prefix}_{name}": metric
        for callback in averaging(learn)
        for name, metric in scores.items()
    }
    return {"train_loss": None, **scores, **averaged}


def validated(learn: Trainer) -> dict[str, Metric | None]:
    """Return what a validation scores: metrics by name, of the loss None."""
    if learn.data.valid is None:
        return {}
    return {"valid_loss": None, **metrics.named(learn.metrics)}


def averaging(learn: Trainer) -> list[Any]:
    """Return the callbacks that validate averaged weights, see `averaging.Averaging`."""
    parts = "prefix", "applied"
    return [cb for cb in learn.loop.callbacks if all(hasattr(cb, part) for part in parts)]


def _mode(name: str, metric: Metric | None) -> str:
    """Return which way is better; of losses, which are no metric, less is."""
    if metric is None:
        return "min"
    higher = metrics.higher_is_better(metric)
    if higher is None:
        raise ValueError(
            f"mode must be given for monitor={name!r}, a metric that does not say what is better: "
            'mode="max" if more is, mode="min" if less is'
        )
    return "max" if higher else "min"


def _choices(name: str, known: dict[str, Any], learn: Trainer) -> str:
    """Return the names there are, and the nearest to `name`."""
    text = f"one of {', '.join(map(repr, known))}, got {name!r}"
    if learn.data.valid is None:
        return f"{text}: there is no validation data"
    near = difflib.get_close_matches(name, known, n=1)
    return f"{text}; did you mean {near[0]!r}?" if near else text
