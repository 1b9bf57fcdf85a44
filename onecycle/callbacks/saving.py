"""Checkpoint: saves the run that is going on, so that it can be finished later."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

from onecycle import checkpoint, checks, files, state
from onecycle.callback import Callback
from onecycle.data.reading import positioned_by

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

ON_ERROR = ("raise", "warn")
RULES = ("every_epochs", "every_steps", "every_minutes", "keep", "on_error")


class Checkpoint(Callback):
    """Save a run as it goes, with all it depends on, so that killed and resumed it ends the same.

    `path` is the newest checkpoint, `path.1`, `path.2`, ... the ones before it; `path.trunk` is
    what `Learner.extend` goes back to, where the fit keeps that. A file is complete before it takes
    its name, so whatever happens there is one to go on from: by `learn.resume(path)`, or by running
    the same script again with `resume=True`. Without a run that is unfinished, `resume=True` begins
    a new one, and a new run replaces the files of an old one. `learn.load(path)` takes model and
    optimizer out of it, and no run.

    Where a model is sharded, by `fully_shard`, each process writes its shards through
    torch.distributed.checkpoint into the folder `path.shards`, which belongs to these files and
    must be moved with them; of several machines all must share the disk. Any number of processes
    can go on with such a run, on the same number it ends bit for bit the same; and so can a model
    that is not sharded.

    The first is written before the first step, the last when the fit is over. In between a run is
    saved between two batches. Where the training data cannot be brought to a place within an epoch,
    as an iterable that is neither a DataLoader nor a sequence, it is saved at the ends of epochs.

    Args:
        path: the file; its folder is made.
        every_epochs: epochs between two checkpoints, None for no such rule.
        every_steps: steps between two checkpoints.
        every_minutes: minutes between two checkpoints.
        keep: files to keep, the newest among them.
        resume: go on with the unfinished run that is there. It must have the same plan.
        on_error: "raise" ends the run at a checkpoint that cannot be written; "warn" goes on and
            says so each time. The checkpoints before it are not harmed.

    Raises:
        ValueError, TypeError: an argument out of its range.

    >>> checkpoint = Checkpoint("runs/digits.pt", every_minutes=10, resume=True)
    """

    in_validation = True
    first_step = 0

    def __init__(
        self,
        path: files.PathLike,
        every_epochs: int | None = 1,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        keep: int = 2,
        *,
        resume: bool = False,
        on_error: str = "raise",
    ) -> None:
        self.path = files.as_path(path)
        self.every_epochs = _optional("every_epochs", every_epochs)
        self.every_steps = _optional("every_steps", every_steps)
        self.every_minutes = (
            None if every_minutes is None else checks.positive("every_minutes", every_minutes)
        )
        self.keep = checks.integer("keep", keep)
        self.resume = checks.flag("resume", resume)
        self.on_error = checks.choice("on_error", on_error, ON_ERROR)
        self.stopped: str | None = None  # what to say once the bar is closed
        self._due = False
        self._step = 0
        self._saved_at = 0.0

    def begin(self, learn: Trainer, *, resumed: bool) -> None:
        """Write the first checkpoint, which shows that the others can be; or go on after one."""
        self._due, self._step, self._saved_at = False, learn.step, time.monotonic()
        if not resumed:
            # Within an epoch the data are not at their place before its first batch.
            self._due = learn.batch_index >= 0
            if not self._due:
                self.save(learn)

    def rest(self, learn: Trainer, *, epoch_over: bool, stopping: bool) -> None:
        """Save where a rule says so, or when the run is about to be stopped."""
        self._due = self._due or stopping or self._is_due(learn, epoch_over)
        self._step = learn.step
        final = learn.epoch + 1 == learn.stop_epoch or learn.loop.over
        last = epoch_over and final and not stopping
        if self._due and not last and (epoch_over or positioned_by(learn.data.train) is not None):
            self.save(learn, epoch_over=epoch_over)
            if stopping:
                at = f"epoch {learn.epoch + 1}, step {learn.step}"
                self.stopped = f"stopped at {at}, saved: learn.resume({str(self.path)!r}) goes on"

    def end(self, learn: Trainer) -> None:
        """Write the last checkpoint, which holds the finished model."""
        self.save(learn, epoch_over=True, finished=True)

    def save(self, learn: Trainer, *, epoch_over: bool = False, finished: bool = False) -> None:
        """Write a checkpoint now.

        Raises:
            OSError: it cannot be written, unless `on_error` is "warn".
            TypeError: a callback's state has something in it that a file cannot hold.
        """
        self._due, self._saved_at = False, time.monotonic()
        learn.training_step.guard.settle(learn)
        current = state.capture(learn, epoch_over=epoch_over, finished=finished)
        current["run"]["rules"] = {name: getattr(self, name) for name in RULES}
        try:
            checkpoint.save(self.path, current, self.keep, apart=True)
        except OSError as error:
            text = (
                f"the checkpoint {str(self.path)!r} of step {learn.step} was not written: {error}"
            )
            if self.on_error == "raise":
                raise type(error)(text) from error
            warnings.warn(f"{text}; training goes on", stacklevel=2)

    def _is_due(self, learn: Trainer, epoch_over: bool) -> bool:
        if self.every_minutes:
            waited = learn.world.number(time.monotonic() - self._saved_at)
            if waited >= 60.0 * self.every_minutes:
                return True
        if epoch_over and self.every_epochs and (learn.epoch + 1) % self.every_epochs == 0:
            return True
        stepped = learn.step != self._step
        return bool(stepped and self.every_steps and learn.step % self.every_steps == 0)


def _optional(name: str, value: int | None) -> int | None:
    return None if value is None else checks.integer(name, value)
