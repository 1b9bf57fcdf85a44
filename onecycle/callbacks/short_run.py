"""A run of a given number of steps, however long its epochs are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onecycle import checks
from onecycle.callback import Callback
from onecycle.signals import CancelTrain

if TYPE_CHECKING:
    from onecycle.learner import Learner


class ShortRun(Callback):
    """Count and plan `steps` steps from 0 and end the run after them, in the middle of an epoch.

    It comes before what reads the plan, such as a schedule.

    >>> callback = ShortRun(100)
    """

    def __init__(self, steps: int) -> None:
        self.steps = checks.integer("steps", steps)

    def on_train_begin(self, learn: Learner) -> None:
        """Make the plan."""
        learn.step, learn.total_steps = 0, self.steps

    def on_step_end(self, learn: Learner) -> None:
        """End the run at its last step."""
        if learn.step >= self.steps:
            raise CancelTrain
