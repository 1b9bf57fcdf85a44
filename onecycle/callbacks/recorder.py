"""The Recorder: one number for every step and one row for every epoch, over all fits."""

from __future__ import annotations

import csv
import io
import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from onecycle import checks, files, optimizers
from onecycle.callback import Callback
from onecycle.files import PathLike
from onecycle.metrics import RESERVED
from onecycle.series import Series
from onecycle.smoothing import Array, centred_mean
from onecycle.tables import data_frame, finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from onecycle.found import LRFind
    from onecycle.learner import Learner

BLOCK = 512  # losses read from the device at once
SMOOTH = 50  # a smoothed loss is a mean over 2 / 50 of its fit
Row = dict[str, Any]


class Recorder(Callback):
    """What happened, step by step and epoch by epoch; every Learner has one as `learn.recorder`.

    * `losses`, `lrs`, `moms`, `grad_norms`: arrays with one number for every optimizer step: the
      training loss of its batches, learning rate and momentum of the last layer group (nan without
      momentum), the norm of all gradients before clipping (nan where the Learner has no `clip`).
    * `history`: one dict for every epoch: epoch (counted from 1 over all fits), train_loss (the
      exact mean over the epoch's samples), valid_loss and the metrics where there is validation
      data, lr of the last step, seconds.
    * `fits`: the number of recorded steps and of epochs there were before each fit.
    * `plans`: what each of these fits was: method, epochs, rates and schedule, by name.

    Losses, momenta and norms are kept in single precision, learning rates in double: 16 bytes for a
    step, 20 with norms. For runs of very many steps set `learn.recorder.every = 10` to keep one
    step in ten from the next fit on; the rows of the epochs are of all steps nevertheless.

    >>> recorder = Recorder()
    >>> recorder.losses, recorder.history
    (array([], dtype=float64), [])
    """

    def __init__(self) -> None:
        self.history: list[Row] = []
        self.fits: list[tuple[int, int]] = []
        self.lr_find: LRFind | None = None
        self.plans: list[dict[str, Any]] = []
        self.every = 1
        self._losses = Series("f")
        self._lrs = Series("d")
        self._moms = Series("f")
        self._grad_norms = Series("f")  # as long as the others up to the last fit that measured
        self._measures = False
        # (steps, place on the axis of epochs) after each epoch, also one that was broken off.
        self._marks: list[tuple[int, float]] = [(0, 0.0)]
        self._places: list[float] = []
        self._per_epoch = 1.0
        # Of each step: loss, samples, learning rate, momentum and, if measured, norm.
        self._unread: list[tuple[Any, ...]] = []
        self._epoch = RunningLoss()
        self._steps = 0  # of this fit, read
        self._every = 1
        self._lr = math.nan
        self._started = 0.0

    @property
    def losses(self) -> Array:
        """Training loss of every step."""
        self._read()
        return self._losses.values()

    @property
    def lrs(self) -> Array:
        """Learning rate of every step."""
        self._read()
        return self._lrs.values()

    @property
    def moms(self) -> Array:
        """Momentum of every step, nan where the optimizer has none."""
        self._read()
        # What was 0.95 is to be 0.95 again after single precision.
        return np.round(self._moms.values(), 7)

    @property
    def grad_norms(self) -> Array:
        """Norm of the gradients of every step before clipping, nan where it was not measured."""
        self._read()
        norms = self._grad_norms.values()
        return np.pad(norms, (0, len(self._lrs) - len(norms)), constant_values=np.nan)

    @property
    def smooth_losses(self) -> Array:
        """The losses as a centred mean over a twenty-fifth of their fit.

        In short fits over seven steps, or half of the fit where that is less.

        Not the exponential mean that is usual here: that lags, and is still falling when the loss
        has stopped.
        """
        losses = self.losses
        borders = [*(steps for steps, _ in self.fits), len(losses)]
        fits = [losses[a:b] for a, b in pairwise(borders)]
        return np.concatenate([losses[:0], *(centred_mean(fit, _reach(len(fit))) for fit in fits)])

    @property
    def epochs(self) -> Array:
        """Where every step lies on an axis of epochs; 1 is the first step of the second."""
        marks = [*self._marks, self._here()]
        parts = [
            np.linspace(place, after, end - start, endpoint=False)
            for (start, place), (end, after) in pairwise(marks)
        ]
        return np.concatenate(parts)

    @property
    def borders(self) -> list[float]:
        """Where on that axis a further fit began."""
        places = dict(self._marks)
        return [places[steps] for steps, _ in self.fits if places.get(steps, 0.0) > 0.0]

    @property
    def ends(self) -> list[int]:
        """How many steps were recorded by the end of each epoch that has a row.

        >>> Recorder().ends
        []
        """
        steps = {place: n for n, place in self._marks}
        return [steps[place] for place in self._places]

    def columns(self) -> dict[str, list[Any]]:
        """Return the history by column; a row that lacks a value has nan there.

        >>> Recorder().columns()
        {}
        """
        names = dict.fromkeys(name for row in self.history for name in row)
        return {name: [row.get(name, float("nan")) for row in self.history] for name in names}

    def to_pandas(self) -> Any:
        """Return the history as a pandas DataFrame, a row for every epoch.

        Raises:
            ImportError: pandas is not installed.
        """
        return data_frame(self.columns())

    def write_csv(self, path: PathLike) -> Path:
        """Write the history to `path` as CSV, a line for every epoch, and return the path."""
        text = io.StringIO(newline="")
        columns = self.columns()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))
        return files.write_text(path, text.getvalue())

    def write_json(self, path: PathLike) -> Path:
        """Write everything recorded to `path` as JSON, and return the path.

        The keys are those of `state_dict`: "history" a list of rows, "losses" and the like a number
        for every step. What is not finite is null, as JSON has no nan.
        """
        return files.write_text(path, json.dumps(finite(self.state_dict()), indent=1) + "\n")

    def on_train_begin(self, learn: Learner) -> None:
        """Mark where this fit begins."""
        self.fits.append((len(self._lrs), len(self.history)))
        self.plans.append(learn.plan)
        self._every = checks.integer("recorder.every", self.every)
        self._steps = 0
        self._per_epoch = learn.steps_per_epoch / self._every
        self._measures = learn.training_step.clip is not None
        if self._measures:
            self._grad_norms = Series("f", self.grad_norms)

    def on_epoch_begin(self, learn: Learner) -> None:  # noqa: ARG002
        """Start the clock of the epoch."""
        self._read()
        self._epoch = RunningLoss()
        self._started = time.perf_counter()

    def on_step_end(self, learn: Learner) -> None:
        """Note the step; its loss stays on the device until a block of them is read."""
        step, opt = learn.training_step, learn.opt
        self._lr = optimizers.read(opt, "lr")
        norm = (step.grad_norm,) if self._measures else ()
        mom = optimizers.read(opt, "mom")
        self._unread.append((step.loss, step.samples, self._lr, mom, *norm))
        if len(self._unread) >= BLOCK:
            self._read()

    def on_epoch_end(self, learn: Learner) -> None:
        """Write the epoch's row."""
        self._read()
        # An epoch is one on the axis, even if it was cut short.
        self._marks.append((len(self._lrs), self._marks[-1][1] + 1.0))
        self._places.append(self._marks[-1][1])
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "train_loss": self._epoch.mean(),
                **learn.scores,
                "lr": self._lr if self._epoch.steps else optimizers.read(learn.opt, "lr"),
                "seconds": time.perf_counter() - self._started,
            }
        )
        self._started = 0.0
        if self._epoch.bad and not self._epoch.lost:
            warnings.warn(
                f"{self._epoch.bad} of {self._epoch.steps} steps of epoch {len(self.history)} had "
                "no finite loss: its train_loss is the mean of the others",
                stacklevel=2,
            )

    def on_train_end(self, learn: Learner) -> None:  # noqa: ARG002
        """Mark an epoch that was broken off; forget the fit when nothing came of it."""
        self._read()
        self._epoch, self._steps, self._started = RunningLoss(), 0, 0.0
        if len(self._lrs) > self._marks[-1][0]:
            self._marks.append(self._here())
        if self.fits and self.fits[-1] == (len(self._lrs), len(self.history)):
            self.fits.pop()
            self.plans.pop()

    def state_dict(self) -> dict[str, Any]:
        """Return everything recorded, and how far a running epoch is."""
        self._read()
        return {
            "history": [dict(row) for row in self.history],
            "fits": [list(fit) for fit in self.fits],
            "plans": list(self.plans),
            "losses": _tensor(self._losses, torch.float32),
            "lrs": _tensor(self._lrs, torch.float64),
            "moms": _tensor(self._moms, torch.float32),
            "grad_norms": _tensor(self._grad_norms, torch.float32),
            "marks": [list(mark) for mark in self._marks],
            "places": list(self._places),
            "running": [*vars(self._epoch).values()],
            "steps": self._steps,
            "every": self._every,
            "lr": self._lr,
            "seconds": time.perf_counter() - self._started if self._started else 0.0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what was recorded; what is here is replaced."""
        self.history = [dict(row) for row in state["history"]]
        self.fits = [(steps, epochs) for steps, epochs in state["fits"]]
        self.plans = list(state["plans"])
        self._losses = Series("f", _floats(state["losses"]))
        self._lrs = Series("d", _floats(state["lrs"]))
        self._moms = Series("f", _floats(state["moms"]))
        self._grad_norms = Series("f", _floats(state["grad_norms"]))
        self._marks = [(steps, place) for steps, place in state["marks"]]
        self._places = list(state["places"])
        self._unread.clear()
        self._epoch = RunningLoss(*state["running"])
        self._steps, self._every = state["steps"], state["every"]
        self._lr = state["lr"]
        elapsed = state["seconds"]
        self._started = time.perf_counter() - elapsed if elapsed else 0.0

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw loss against learning rate of the last `lr_find`; return the axes.

        Raises:
            ValueError: there was no `lr_find` yet.
        """
        if self.lr_find is None:
            raise ValueError("nothing to plot: call learn.lr_find() first")
        return self.lr_find.plot(ax)

    def plot_lr(self, show_moms: bool = False, ax: Any = None) -> Any:
        """Draw the learning rate of every step over epochs; with `show_moms` momentum beside it.

        Args:
            show_moms: draw two pictures side by side.
            ax: axes to draw into, a pair of them with `show_moms`.

        Returns:
            The axes, a pair of them with `show_moms`.
        """
        from onecycle import plot

        checks.flag("show_moms", show_moms)
        names = {"learning rate": self.lrs} | ({"momentum": self.moms} if show_moms else {})
        if ax is None:
            ax = plot.side_by_side([5.0] * len(names))
        elif np.size(ax) != len(names):
            wanted = "a pair of axes with" if show_moms else "one without"
            raise TypeError(f"ax must be {wanted} show_moms=True, got {np.size(ax)}")
        drawn = tuple(
            plot.over_epochs(self.epochs, values, name, one, borders=self.borders)
            for (name, values), one in zip(names.items(), np.atleast_1d(ax).tolist(), strict=True)
        )
        return drawn if show_moms else drawn[0]

    def plot_losses(self, skip_start: int = 0, log: bool = False, ax: Axes | None = None) -> Axes:
        """Draw training loss, raw and smooth, and validation loss over epochs; return the axes.

        Beside it is the validation loss of averaged weights, where there is one.

        Args:
            skip_start: steps at the beginning that are left out.
            log: logarithmic scale.
            ax: axes to draw into.
        """
        from onecycle import plot

        skip = checks.integer("skip_start", skip_start, low=0)
        return plot.losses(
            self.epochs[skip:],
            self.losses[skip:],
            self.smooth_losses[skip:],
            self.points("valid_loss"),
            ax,
            averaged={name: self.points(name) for name in self.columns() if _is_loss(name)},
            log=checks.flag("log", log),
            borders=self.borders,
        )

    def plot_grad_norm(self, log: bool = True, ax: Axes | None = None) -> Axes:
        """Draw the norm of the gradients before clipping over epochs; return the axes.

        Raises:
            ValueError: it was not measured.
        """
        from onecycle import plot

        checks.flag("log", log)
        norms = self.grad_norms
        if not np.isfinite(norms).any():
            raise ValueError(
                "no gradient norms to plot: train with Learner(clip=...), where "
                'clip=float("inf") measures and does not clip'
            )
        return plot.over_epochs(
            self.epochs, norms, "gradient norm", ax, borders=self.borders, log=log
        )

    def plot_metrics(self, ax: Axes | None = None) -> Axes:
        """Draw every metric over epochs; return the axes.

        Raises:
            ValueError: no epoch has a metric.
        """
        from onecycle import plot

        names = [name for name in self.columns() if name not in RESERVED and not _is_loss(name)]
        if not names:
            raise ValueError("no metrics to plot: give Learner(metrics=...) and validation data")
        columns = {name: self.points(name) for name in names}
        return plot.metrics(columns, ax, borders=self.borders)

    def points(self, name: str, since: int = 0) -> list[tuple[float, float]]:
        """Return (place on the axis of epochs, value) of the rows that have `name`.

        Args:
            name: a column of the history.
            since: rows that are left out.
        """
        first = checks.integer("since", since, low=0)
        rows = list(zip(self._places, self.history, strict=True))[first:]
        return [(place, row[name]) for place, row in rows if name in row]

    def _here(self) -> tuple[int, float]:
        """Return the steps there are and their place, within a running epoch by its steps."""
        self._read()
        steps, place = self._marks[-1]
        return len(self._lrs), place + min(1.0, (len(self._lrs) - steps) / self._per_epoch)

    def _read(self) -> None:
        """Move the unread losses to the host, all at once."""
        if not self._unread:
            return
        device_losses, samples, lrs, moms, *norms = zip(*self._unread, strict=True)
        losses = torch.stack(device_losses).tolist()
        self._epoch.add(losses, samples)
        kept = slice(-self._steps % self._every, None, self._every)
        self._losses.extend(losses[kept])
        self._lrs.extend(lrs[kept])
        self._moms.extend(moms[kept])
        for of_steps in norms:
            self._grad_norms.extend(torch.stack(of_steps).tolist()[kept])
        self._steps += len(losses)
        self._unread.clear()


@dataclass
class RunningLoss:
    """The mean loss over the samples of an epoch, summed step by step.

    In that order and no other, so that a resumed epoch has the same sum to the last bit.
    """

    total: float = 0.0
    samples: int = 0
    steps: int = 0
    bad: int = 0
    lost: bool = False

    def add(self, losses: Sequence[float], samples: Sequence[int]) -> None:
        """Take the losses of some steps, each a mean over its samples."""
        self.steps += len(losses)
        for loss, n in zip(losses, samples, strict=True):
            self.lost = not math.isfinite(loss)
            if not self.lost:
                self.total += loss * n
                self.samples += n
            else:
                self.bad += 1

    def mean(self) -> float:
        """Return the mean over the steps with a finite loss; nan if the last one had none."""
        return math.nan if self.lost or not self.samples else self.total / self.samples


def _is_loss(name: str) -> bool:
    """Tell whether a column is the validation loss of averaged weights, such as ema_valid_loss."""
    return name.endswith("_valid_loss")


def _tensor(series: Series, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(series.values()).to(dtype)


def _floats(values: Any) -> list[float]:
    return list(torch.as_tensor(values).tolist())


def _reach(steps: int) -> int:
    """Return the steps on either side that are averaged in a fit of so many."""
    return min(max(3, steps // SMOOTH), steps // 4)
