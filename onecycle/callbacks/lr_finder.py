"""The LR range test: a rising learning rate, the loss at each step, and what they say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import checks, optimizers, schedules
from onecycle.callback import Callback, CancelTrain
from onecycle.smoothing import Array
from onecycle.suggest import Suggestion, smooth, suggest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from onecycle.learner import Learner


class LRFind(float):
    """The result of `Learner.lr_find`: the suggested learning rate, a float that knows its curve.

    It is nan when the sweep shows no descent; `reason` says why, and `Learner.fit_one_cycle`
    refuses it with that sentence.

    Args:
        lrs: the learning rates that were tried, rising.
        losses: the raw training loss of each step; the last may be not finite.

    >>> LRFind([0.1], [2.3]).confidence
    'none'
    """

    lrs: Array
    losses: Array
    suggestion: Suggestion

    def __new__(cls, lrs: Any, losses: Any) -> LRFind:
        """Judge the curve."""
        suggestion = suggest(lrs, losses)
        self = super().__new__(cls, suggestion.lr)
        self.lrs = np.asarray(lrs, dtype=np.float64)
        self.losses = np.asarray(losses, dtype=np.float64)
        self.suggestion = suggestion
        return self

    def __getnewargs__(self) -> tuple[Array, Array]:  # type: ignore[override]
        """Copy and pickle by the curve."""
        return self.lrs, self.losses

    @property
    def band(self) -> tuple[float, float]:
        """Learning rates that should do: from the steepest point to half of the divergence."""
        return self.suggestion.band

    @property
    def confidence(self) -> str:
        """Return "high", "low" or "none"."""
        return self.suggestion.confidence

    @property
    def reason(self) -> str:
        """Why the confidence is not high, in a sentence."""
        return self.suggestion.reason

    @property
    def points(self) -> dict[str, float]:
        """The learning rates of the landmarks: "steepest", "minimum", "divergence"."""
        return self.suggestion.points

    @property
    def smoothed(self) -> Array:
        """The losses without their noise, up to the first that is not finite."""
        n = int(np.isfinite(self.losses).cumprod().sum())
        if n < 2:
            return self.losses[:n]
        return smooth(self.lrs[:n], self.losses[:n], self.suggestion.width)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw loss against learning rate, the suggestion and its band; return the axes."""
        from onecycle import plot

        return plot.lr_find(self, ax)

    def __repr__(self) -> str:
        """Return the suggestion, its band and how far to trust it."""
        if math.isnan(self):
            return f"LRFind(nan: {self.reason})"
        low, high = self.band
        text = f"{float(self):.2e}, band {low:.1e} to {high:.1e}, confidence {self.confidence}"
        return f"LRFind({text}: {self.reason})" if self.reason else f"LRFind({text})"

    def __str__(self) -> str:
        """Return the number alone."""
        return float.__repr__(self)


class LRFinder(Callback):
    """Raise the learning rate from `start_lr` to `end_lr`, by the same factor at each step.

    lr(k) = start_lr (end_lr / start_lr)^(k / (num_it - 1)) at step k for the last layer group; the
    others keep their ratio to it. The run ends after `num_it` steps, at a loss that is not finite,
    or, with `stop_div`, when the median of the last three losses is above first + max(first -
    lowest, |first|, 4 noise), with first and noise from the first ten losses. `Learner.lr_find`
    runs it and puts everything back; used by itself in a `fit`, it trains.

    Args:
        start_lr: the first learning rate, above 0.
        end_lr: the last, above `start_lr`.
        num_it: steps, at least 10.
        stop_div: stop when the loss diverges.

    Raises:
        ValueError, TypeError: an argument out of its range.

    Source: Smith 2017 (arXiv 1506.01186), section 3.3; exponential and on the training loss as in
        fastai.

    >>> finder = LRFinder(1e-5, 1.0)
    """

    def __init__(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        num_it: int = 100,
        stop_div: bool = True,
    ) -> None:
        self.start_lr = checks.positive("start_lr", start_lr)
        self.end_lr = checks.positive("end_lr", end_lr)
        if self.end_lr <= self.start_lr:
            raise ValueError(f"end_lr must be above start_lr={start_lr!r}, got {end_lr!r}")
        self.num_it = checks.integer("num_it", num_it, low=10)
        self.stop_div = stop_div
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self._ratios = [1.0]
        self._schedule = schedules.exponential(self.start_lr, self.end_lr)

    def on_train_begin(self, learn: Learner) -> None:
        """Forget an earlier sweep."""
        self.lrs, self.losses = [], []
        self._ratios = optimizers.ratios(learn.opt)

    def on_batch_begin(self, learn: Learner) -> None:
        """Set the learning rate of this step."""
        lr = self._schedule(schedules.progress(learn.step, self.num_it))
        optimizers.write(learn.opt, "lr", [lr * ratio for ratio in self._ratios])

    def on_step_end(self, learn: Learner) -> None:
        """Record the step; stop at the end, at divergence, or at a loss that is not finite."""
        self.lrs.append(optimizers.read(learn.opt, "lr"))
        # The stop rule needs the number now: nothing else in training waits for the device.
        self.losses.append(learn.training_step.loss.item())
        done = len(self.losses) >= self.num_it
        if done or not math.isfinite(self.losses[-1]) or (self.stop_div and self._diverges()):
            raise CancelTrain

    def result(self) -> LRFind:
        """Return what the sweep found.

        Raises:
            ValueError: the very first loss was not finite.
        """
        if not self.losses or not math.isfinite(self.losses[0]):
            loss = self.losses[0] if self.losses else "missing"
            raise ValueError(
                f"lr_find: the loss is {loss} at the first step, start_lr={self.start_lr:g}; "
                "model and data give no finite loss, or start_lr is far too high"
            )
        return LRFind(self.lrs, self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Return the sweep so far."""
        return {"lrs": list(self.lrs), "losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a sweep."""
        self.lrs, self.losses = list(state["lrs"]), list(state["losses"])

    def _diverges(self) -> bool:
        if len(self.losses) < 10:
            return False
        head = np.asarray(self.losses[:10])
        first, noise = float(np.median(head)), float(np.std(head))
        allowed = max(first - min(self.losses), abs(first), 4.0 * noise)
        return float(np.median(self.losses[-3:])) > first + allowed
