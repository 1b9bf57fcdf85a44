"""The LR range test: a learning rate that rises while the loss is written down."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from onecycle import checks, optimizers, schedules
from onecycle.callback import Callback
from onecycle.found import LRFind
from onecycle.signals import CancelTrain

if TYPE_CHECKING:
    from onecycle.learner import Learner

HEAD, TAIL = 10, 3  # losses that say where the curve begins, and where it is now


class LRFinder(Callback):
    """Raise the learning rate from `start_lr` to `end_lr`, by the same factor at each step.

    lr(k) = start_lr (end_lr / start_lr)^(k / (num_it - 1)) at step k for the last layer group; the
    others keep their ratio to it. The run ends after `num_it` steps, at a loss that is not finite,
    or, with `stop_div`, when the median of the last three losses has risen above the first by half
    of the descent so far, by three times what 95 % of the losses before stay under, and by a tenth
    of itself; the first is the median of ten. `Learner.lr_find` runs it and puts everything back;
    used by itself in a `fit`, it trains.

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
        self.stop_div = checks.flag("stop_div", stop_div)
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
        lr = self._schedule(schedules.progress(len(self.lrs), self.num_it))
        optimizers.write(learn.opt, "lr", [lr * ratio for ratio in self._ratios])

    def on_backward_begin(self, learn: Learner) -> None:
        """Stop at a loss that is not finite, before it is trained on."""
        loss = learn.loss.item()
        if not math.isfinite(loss):
            self.lrs.append(optimizers.read(learn.opt, "lr"))
            self.losses.append(loss)
            raise CancelTrain

    def on_step_end(self, learn: Learner) -> None:
        """Record the step; stop at the end, at divergence, or at a loss that is not finite."""
        self.lrs.append(optimizers.read(learn.opt, "lr"))
        # The stop rule needs the number now: nothing else in training waits for the device.
        self.losses.append(learn.training_step.loss.item())
        done = len(self.losses) >= self.num_it
        if done or not math.isfinite(self.losses[-1]) or (self.stop_div and self._diverges()):
            raise CancelTrain

    def on_train_end(self, learn: Learner) -> None:
        """Of several processes take the sweep of one that has seen a loss that is not finite."""
        everyone = learn.world.gather((self.lrs, self.losses))
        self.lrs, self.losses = max(everyone, key=lambda sweep: len(sweep[1]))

    def check(self) -> None:
        """Refuse a sweep that has nothing to say.

        Raises:
            ValueError: the very first loss was not finite.
        """
        if not self.losses or not math.isfinite(self.losses[0]):
            loss = self.losses[0] if self.losses else "missing"
            raise ValueError(
                f"lr_find: the loss is {loss} at the first step, start_lr={self.start_lr:g}; "
                "model and data give no finite loss, or start_lr is far too high"
            )

    def result(self) -> LRFind:
        """Return what the sweep found.

        Raises:
            ValueError: the very first loss was not finite.
        """
        self.check()
        return LRFind(self.lrs, self.losses)

    def state_dict(self) -> dict[str, Any]:
        """Return the sweep so far."""
        return {"lrs": list(self.lrs), "losses": list(self.losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a sweep."""
        self.lrs, self.losses = list(state["lrs"]), list(state["losses"])

    def _diverges(self) -> bool:
        if len(self.losses) < HEAD + TAIL:
            return False
        before = np.asarray(self.losses[:-TAIL])
        first = float(np.median(before[:HEAD]))
        usual = float(np.percentile(before, 95)) - first
        allowed = max(3.0 * usual, (first - float(before.min())) / 2, abs(first) / 10)
        return float(np.median(self.losses[-TAIL:])) > first + allowed
