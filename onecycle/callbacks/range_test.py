"""The range test of the paper: a learning rate that rises linearly, and a validation score."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onecycle import optimizers, schedules
from onecycle.callback import Callback
from onecycle.signals import CancelTrain

if TYPE_CHECKING:
    from onecycle.learner import Learner

LOOKS = 25  # how often the score is taken


class RangeTest(Callback):
    """Raise the learning rate linearly from `start_lr` to `end_lr` and take a score on the way.

    Args:
        start_lr: the first learning rate, of the last layer group; the others keep their ratio.
        end_lr: the last.
        num_it: steps.
        score: returns the score, the higher the better; it is taken before the first step, and 25
            times at even distances.

    Source: Smith 2017 (arXiv 1506.01186), section 3.3.
    """

    def __init__(
        self, start_lr: float, end_lr: float, num_it: int, score: Callable[[], float]
    ) -> None:
        self.start_lr = start_lr
        self.num_it = num_it
        self.score = score
        self.lrs: list[float] = []
        self.scores: list[float] = []
        self._ratios = [1.0]
        self._schedule = schedules.linear(start_lr, end_lr)
        self._at = {round((k + 1) * num_it / LOOKS) for k in range(LOOKS)}

    def on_train_begin(self, learn: Learner) -> None:
        """Forget an earlier test, and take the first score."""
        self._ratios = optimizers.ratios(learn.opt)
        self.lrs, self.scores = [self.start_lr], [self.score()]

    def on_batch_begin(self, learn: Learner) -> None:
        """Set the learning rate of this step."""
        lr = self._schedule(schedules.progress(learn.step, self.num_it))
        optimizers.write(learn.opt, "lr", [lr * ratio for ratio in self._ratios])

    def on_step_end(self, learn: Learner) -> None:
        """Take the score when it is time; stop at a loss that is not finite."""
        if learn.step in self._at:
            self.lrs.append(optimizers.read(learn.opt, "lr"))
            self.scores.append(self.score())
        if not bool(learn.training_step.loss.isfinite()):
            raise CancelTrain
