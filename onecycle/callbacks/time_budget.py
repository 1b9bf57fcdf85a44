"""A run of so many minutes: progress is the clock."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from onecycle import checks
from onecycle.callback import Callback
from onecycle.schedules import progress

if TYPE_CHECKING:
    from onecycle.learner import Learner


class TimeBudget(Callback):
    """Make the clock the progress of a run, and end the run in time.

    Before step t, with E seconds gone since the run began, validations among them:

        progress = min(1, E / (60 minutes - V - S))

    V is how long the last validation took, and S the mean of the steps but for the first, which is
    often slow. The first step at progress 1 is the last; a validation follows it. So a schedule
    always reaches its last value, and the run ends within a step and a validation of the minutes.
    Where the run is planned in epochs, too, progress is the larger of both, and what is reached
    first ends it.

    Time in which the run was not running, because it was stopped and resumed, does not count. Of
    several processes the clock of the first counts.

    Args:
        minutes: above 0.
        bounded: the epochs of the plan are a limit, too.

    >>> budget = TimeBudget(minutes=10)
    """

    def __init__(self, minutes: float, *, bounded: bool = False) -> None:
        self.minutes = checks.positive("minutes", minutes)
        self.bounded = bounded
        self.progress = 0.0
        self._began = self._stepping = self._validating = self._validation = 0.0
        self._training, self._steps = 0.0, 0
        self._before: int | None = None  # steps done before the last one, once that has begun
        self._trained = False  # whether this epoch has had a batch

    @property
    def used(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, 60.0 * self.minutes - self.used)

    def on_train_begin(self, learn: Learner) -> None:
        """Start the clock."""
        self.progress = 0.0
        self._validation = self._training = 0.0
        self._steps = 0
        self._before = None
        self._began = time.monotonic()
        self._estimate(learn)

    def on_epoch_begin(self, learn: Learner) -> None:
        """Estimate how many epochs there will be, where the plan does not say."""
        self._trained = False
        self._estimate(learn)

    def on_batch_begin(self, learn: Learner) -> None:
        """Read the clock."""
        self._trained = True
        self._read(learn)
        if self.progress >= 1.0 and self._before is None:
            self._before = learn.step
        self._stepping = self.used

    def on_batch_end(self, learn: Learner) -> None:
        """End the run after the step that had progress 1, or when there is no time for it."""
        if self._steps:
            self._training += self.used - self._stepping
        self._steps += 1
        self._read(learn)
        over = self._before is not None and (learn.step > self._before or not self.left)
        self._end_if(learn, over)

    def on_validate_begin(self, learn: Learner) -> None:  # noqa: ARG002
        """Note the time."""
        self._validating = self.used

    def on_validate_end(self, learn: Learner) -> None:
        """Note how long a validation takes."""
        self._validation = self.used - self._validating
        self._read(learn)

    def on_epoch_end(self, learn: Learner) -> None:
        """End the run in time where no batch is ever begun."""
        self._end_if(learn, not (self._trained or self.left))

    def state_dict(self) -> dict[str, Any]:
        """Return the time used and what was measured."""
        measured = ("progress", "_validation", "_training", "_steps")
        return {"used": self.used, **{name: getattr(self, name) for name in measured}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the time that is left."""
        for name, value in state.items():
            if name != "used":
                setattr(self, name, value)
        self._began = time.monotonic() - state["used"]

    def _end_if(self, learn: Learner, over: bool) -> None:
        if learn.world.number(over):  # all ask, whatever else may have ended the run
            learn.loop.over = True

    def _read(self, learn: Learner) -> None:
        """Take the progress that a step would have which begins now."""
        step = self._training / (self._steps - 1) if self._steps > 1 else 0.0
        available = 60.0 * self.minutes - self._validation - step
        now = self.used / available if available > 0.0 else 1.0
        if not self._steps:
            now = 0.0  # the first step has the first value, however long its batch took to come
        if self.bounded:
            now = max(now, progress(learn.step, learn.total_steps))
        self.progress = learn.world.number(min(1.0, max(self.progress, now)))

    def _estimate(self, learn: Learner) -> None:
        if not self.bounded:
            epochs = learn.epoch / self.progress if self.progress else 1.0
            learn.n_epochs = min(learn.stop_epoch, max(learn.epoch + 1, math.ceil(epochs)))
            learn.total_steps = learn.n_epochs * learn.steps_per_epoch
