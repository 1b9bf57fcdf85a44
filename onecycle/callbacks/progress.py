"""The progress display: a bar within the epoch, a row of a table after it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from onecycle import checks, optimizers
from onecycle.callback import Callback
from onecycle.display import Surface, surface

if TYPE_CHECKING:
    from onecycle.learner import Learner


class ProgressBar(Callback):
    """Show how far training is, and a row of a table after every epoch.

    A notebook gets an HTML table that grows, with a bar beneath; a terminal a line of tqdm and an
    aligned table; a log a line for every epoch and at most one a minute in between.
    `ONECYCLE_PROGRESS`, in the environment, forces one of "notebook", "terminal", "log" and "off".
    Every Learner has one; `learn.no_bar()` and `learn.no_logging()` silence it.

    The bar tells loss, learning rate, batches a second, and the time left for the epoch and for the
    run. It moves by the clock, ten times a second in a terminal and four times in a notebook. In a
    terminal, what a callback prints while the bar is there lands behind it; `tqdm.write` does not.

    Args:
        bar: show the bar.
        table: show the table.

    >>> quiet = ProgressBar(bar=False)
    """

    def __init__(self, bar: bool = True, table: bool = True) -> None:
        self.bar = checks.flag("bar", bar)
        self.table = checks.flag("table", table)
        self._surface = Surface()
        self._first = 0
        self._started = self._next = 0.0
        self._spent = self._validation = self._validating = 0.0  # seconds in validations

    def on_train_begin(self, learn: Learner) -> None:
        """Choose a surface and begin a new table."""
        self._surface = surface() if self.bar or self.table else Surface()
        if self.table:
            self._surface.begin()
        self._first = learn.epoch
        self._spent = self._validation = self._validating = 0.0
        self._started = time.monotonic()
        self._next = self._started + self._surface.refresh if self.bar else float("inf")

    def on_epoch_begin(self, learn: Learner) -> None:
        """Open the bar of the epoch."""
        if self.bar:
            budget = learn.budget
            label = f"epoch {learn.epoch + 1}"
            if budget is None or budget.bounded:
                label += f"/{learn.n_epochs}"
            if budget is not None:
                label += f", {budget.minutes:g} min"
            self._surface.open(label, learn.batches_per_epoch)

    def on_batch_end(self, learn: Learner) -> None:
        """Move the bar when it is time."""
        if time.monotonic() >= self._next:
            self._move(learn)

    def on_validate_begin(self, learn: Learner) -> None:
        """Show a full bar during validation."""
        self._validating = time.monotonic()
        if self.bar and self._surface.refresh < 1.0:
            self._move(learn)

    def on_validate_batch_end(self, learn: Learner) -> None:
        """Show that it goes on."""
        self.on_batch_end(learn)

    def on_validate_end(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Note how long a validation takes."""
        self._validation = time.monotonic() - self._validating
        self._spent += self._validation
        self._validating = 0.0

    def on_epoch_end(self, learn: Learner) -> None:
        """Show the row of the epoch."""
        if self.table:
            self._surface.row(learn.recorder.history[-1])

    def on_train_end(self, learn: Learner) -> None:  # noqa: ARG002 - the contract of a hook
        """Leave no bar behind."""
        self._surface.end()
        self._surface = Surface()
        self._next = float("inf")

    def _place(self, learn: Learner) -> tuple[int, float]:
        """Return the batches of the bar that are done, and the share of the run's training."""
        done = learn.batch_index + 1
        epochs = learn.epoch - self._first + done / learn.batches_per_epoch
        return done, epochs / (learn.stop_epoch - self._first)

    def _left(self, learn: Learner, share: float, now: float) -> float | None:
        """Return the seconds that the run will take; None during the first validation."""
        if learn.budget is not None and not learn.budget.bounded:
            return learn.budget.left
        inside = now - self._validating if self._validating else 0.0
        if inside and not self._validation:
            return None
        training = now - self._started - self._spent - inside
        epochs = learn.stop_epoch - learn.epoch
        left = training * (1.0 - share) / share + max(0.0, epochs * self._validation - inside)
        return left if learn.budget is None else min(left, learn.budget.left)

    def _move(self, learn: Learner) -> None:
        done, share = self._place(learn)
        now = time.monotonic()
        loss = "-" if learn.loss is None else f"{learn.loss.item():.4f}"
        lr = f"{optimizers.read(learn.opt, 'lr'):.2e}"
        self._surface.move(done, loss, lr, self._left(learn, share, now) if share else None)
        self._next = now + self._surface.refresh


class SweepBar(ProgressBar):
    """One bar over the steps of a sweep, or of what is left of a run, and no table."""

    def __init__(self, label: str, steps: int) -> None:
        super().__init__(table=False)
        self.label = label
        self.steps = steps
        self._begun: int | None = None  # the step with which the bar begins

    def on_train_begin(self, learn: Learner) -> None:
        """Choose a surface."""
        super().on_train_begin(learn)
        self._begun = None

    def on_epoch_begin(self, learn: Learner) -> None:
        """Open the bar at the first epoch, when a run that goes on is at its place."""
        if self._begun is None:
            self._begun = learn.step
            self._surface.open(self.label, self.steps)

    def on_epoch_end(self, learn: Learner) -> None:
        """Keep it."""

    def _place(self, learn: Learner) -> tuple[int, float]:
        done = learn.step - (self._begun or 0)
        return done, done / self.steps
