"""The field of a search: trains configurations, each by one complete cycle."""

from __future__ import annotations

import difflib
import inspect
import math
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onecycle import checks, optimizers, together
from onecycle.callbacks.scheduler import OneCycleScheduler
from onecycle.notes import noted
from onecycle.plan import CYCLE
from onecycle.snapshot import surroundings_preserved
from onecycle.trainer import Trainer
from onecycle.tuning.search import COLUMNS, Row
from onecycle.tuning.space import Interval, Params, Space, described
from onecycle.tuning.twin import twin

if TYPE_CHECKING:
    from onecycle.learner import Learner

OF_FIT = ("max_lr", "wd", *CYCLE)  # what `fit_one_cycle` takes
HIDDEN = ("epoch", "train_loss", "lr", "seconds")  # columns of a history that tell no result


class Field:
    """Trains configurations, each by one complete cycle, and notes what came of them.

    Args:
        learn: where they begin, and what is left as it is.
        space: what they are made of.
        make: a factory of learners; None makes twins of `learn`.
        metric: the column of the history to judge by.
        higher: whether more of it is better.
        seed: of every trial alike, so that they are compared in pairs.

    Attributes:
        table: a row for every cycle.
        learner: the best of the longest cycles so far, or None.

    Raises:
        ValueError, TypeError: a name or a value that nothing takes; no validation data.
    """

    def __init__(
        self,
        learn: Learner,
        space: Space,
        make: Callable[..., Learner] | None,
        metric: str,
        higher: bool,
        seed: int,
    ) -> None:
        self.learn, self.space, self.metric, self.seed = learn, space, metric, seed
        self.sign = -1.0 if higher else 1.0
        self.table: list[Row] = []
        self.learner: Learner | None = None
        self.fixed: Params = {}  # arguments of every cycle
        self._best = (0, math.inf)
        self._factory = make
        self._made = _taken_by(make, space) if make is not None else {"batch_size"} & space.keys()
        self._check(space.keys() - self._made)
        if make is None:
            self._check_learner()

    def say(self, text: str) -> None:
        """Show a line."""
        self.learn.say(f"find: {text}")

    def cost(self, row: Row) -> float:
        """Return the score of a row as something to be low; infinite where it diverged."""
        value = row.get(self.metric, math.nan)
        return self.sign * value if math.isfinite(value) else math.inf

    def is_good(self, row: Row) -> bool:
        """Tell whether a row has a score."""
        return math.isfinite(self.cost(row))

    def train(self, number: int, params: Params, rung: int, epochs: int) -> Row:
        """Train a configuration from the start by a complete cycle, and return its row."""
        began = time.perf_counter()
        row: Row = {"trial": number, "rung": rung, "epochs": epochs, **params}
        learn = self.learn
        with (
            noted(f"raised by trial {number} of learn.find: {described(params)}"),
            surroundings_preserved(learn.modules, learn.data.train),
        ):
            _seed(self.seed)
            trial = self._make(params)
            # Trials may share data whose order is that of a generator of its own.
            with surroundings_preserved(trial.modules, trial.data.train), trial.no_logging():
                scores = self._fit(trial, epochs, params)
        row |= {**scores, "seconds": time.perf_counter() - began, "kept": False}
        self.table.append(row)
        place = -rung, self.cost(row)
        if self.is_good(row) and place < self._best:
            self._best, self.learner = place, trial
        return row

    def _make(self, params: Params) -> Learner:
        own = {name: params[name] for name in self._made}
        if self._factory is None:
            return twin(self.learn, self.learn.data.again(own.get("batch_size"), self.seed))
        trial = self._factory(**own)
        if not isinstance(trial, Trainer):
            raise TypeError(f"make must return a Learner, got {trial!r}")
        if trial is self.learn or trial.recorder.history:
            raise ValueError(f"make must return a new Learner every time, got {trial!r}")
        if trial.data.valid is None:
            raise ValueError("make must return a Learner with validation data, this one has none")
        return trial

    def _fit(self, trial: Learner, epochs: int, params: Params) -> dict[str, float]:
        """Return what the end of the cycle scores, nan when it did not come so far."""
        names = params.keys() - self._made
        own = {"max_lr" if name == "lr" else name: params[name] for name in names}
        cycle = {**self.fixed, **own}
        try:
            trial.fit_one_cycle(epochs, **cycle)
        except FloatingPointError:
            return dict.fromkeys(("valid_loss", *trial.metrics, self.metric), math.nan)
        last = trial.recorder.history[-1]
        if self.metric not in last:
            known = ", ".join(name for name in last if name not in HIDDEN)
            raise ValueError(f"metric must be one of {known}, got {self.metric!r}")
        return {k: v for k, v in last.items() if k not in HIDDEN or k == self.metric}

    # ---- what can be known to be wrong before anything is trained ------------------------------

    def _check(self, names: set[str]) -> None:
        """Refuse names that are for nobody, and values that the cycle does not take."""
        taken = set(COLUMNS) & self.space.keys()
        if taken:
            raise ValueError(f"space: {min(taken)!r} is a column of the table, call it otherwise")
        known = (*OF_FIT, "lr") if self._factory else (*OF_FIT, "lr", "batch_size")
        for name in sorted(names - set(known)):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            ways = (
                "make does not take it either" if self._factory else "others need a factory, make="
            )
            raise ValueError(
                f"space[{name!r}] is no argument of fit_one_cycle to search, they are "
                f"{', '.join(known)}{hint}; {ways}"
            )
        if {"lr", "max_lr"} <= names:
            raise ValueError("space: 'lr' and 'max_lr' are the same, leave one out")
        for name in names:
            for value in self.space[name].ends:
                with noted(f"in space[{name!r}]"):
                    _check_value(name, value)

    def _check_learner(self) -> None:
        """Refuse what a twin of the learner could not be."""
        if self.learn.data.valid is None:
            raise ValueError("find judges on validation data, and this learner has none")
        if optimizers.has_modes(self.learn.opt):
            raise ValueError(
                f"find trains complete 1cycles, and {together.name(self.learn.opt)} averages "
                "instead of annealing: compare flat runs, fit(epochs, lr), by hand"
            )
        if "batch_size" in self._made:
            if isinstance(self.space["batch_size"], Interval):
                raise ValueError("space['batch_size'] must be a list of whole numbers or a range")
            for size in self.space["batch_size"].ends:
                self.learn.data.again(batch_size=size)


def _taken_by(make: Any, space: Space) -> set[str]:
    """Return the names that a factory takes: its own, and with **kwargs those of no cycle."""
    if not callable(make):
        raise TypeError(f"make must be a function that returns a Learner, got {make!r}")
    parameters = inspect.signature(make).parameters.values()
    own = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        own |= space.keys() - {*OF_FIT, "lr"}
    return own & space.keys()


def _check_value(name: str, value: Any) -> None:
    if name == "wd":
        checks.real("wd", value, low=0.0)
    elif name in ("lr", "max_lr"):
        OneCycleScheduler(value)
    else:
        OneCycleScheduler(1e-3, **{name: value})


def _seed(seed: int) -> None:
    """Seed every global generator, also for those who draw from numpy's or Python's."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - users' transforms draw from it
    torch.manual_seed(seed)
