"""The trunk: a run as it was before its anneal, from where a longer run can grow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from onecycle import checkpoint, state
from onecycle.callbacks.recorder import Recorder
from onecycle.callbacks.save_best import SaveBest
from onecycle.callbacks.stopping import EarlyStopping
from onecycle.data.reading import positioned_by
from onecycle.tracking import Tracker

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

LIMIT = 1 << 30  # bytes of a trunk that is kept in memory
GRID = 1000  # points of a schedule that are looked at for its anneal
ROUNDING = 1e-9
JUDGES = (Recorder, Tracker, EarlyStopping, SaveBest)
State = dict[str, Any]
Values = dict[str, list[float]]


@dataclass
class Trunk:
    """What `Learner.extend` goes back to.

    Attributes:
        state: of the run, as `state.capture` has it, without what was recorded; its tensors are
            copies on the CPU. None where it is in a file.
        plan: of the fit.
        epoch: how far it was, in epochs of that plan.
        progress: the same, as the schedule has it.
        values: of the scheduled hyper-parameters at this place, for each layer group.
        ends: of the same at the end of the plan.
        step: steps done of the plan.
        path: the file.
    """

    state: State | None = field(repr=False)
    plan: State = field(repr=False)
    epoch: float
    progress: float
    values: Values
    ends: Values
    step: int = 0
    path: Path | None = None

    def read(self) -> State:
        """Return the state, to look at.

        Raises:
            FileNotFoundError, ValueError: its file is gone or damaged.
        """
        if self.state is not None:
            return self.state
        loaded = checkpoint.load(self.path or "")
        return {name: loaded[name] for name in ("model", "optimizer", "run")}

    def load(self) -> State:
        """Return the state, in tensors of its own: an optimizer trains in those that it is given.

        Raises:
            FileNotFoundError, ValueError: as `read`.
        """
        read = self.read()
        own: State = read if self.state is None else copied(read)
        return own


class TrunkKeeper:
    """Keeps the trunk of a run: takes its state once, at rest, right before the anneal.

    Args:
        share: of the highest learning rate; the anneal is where the rate falls below it for good.
            1 is the end of a flat part. A 1cycle, which has none, is left in the middle of its
            anneal: from its peak on, most of it would be trained anew.
        path: file to keep the trunk in; None is memory, if it is not larger than 1 GB.
        since: where the run begins, its trunk if it anneals at once.
    """

    in_validation = False

    def __init__(self, share: float, path: Path | None = None, since: Trunk | None = None) -> None:
        self.share = share
        self.path = path
        self.since = since
        self.first_step = 0
        self.trunk: Trunk | None = None
        self._at: float | None = None

    def found(self, plan: State, step: int | None = None) -> Trunk | None:
        """Return the trunk that is in the file already, see `found`."""
        return None if self.path is None else found(self.path, plan, step)

    def begin(self, learn: Trainer, *, resumed: bool) -> None:
        """Find the anneal in the schedule."""
        # A run that is resumed may have its trunk in the file already.
        self._at = None if self.trunk else before_anneal(learn.scheduler, self.share)
        if self._at is not None and learn.progress > self._at:
            if self.since is not None and not resumed:
                self._keep(learn, self.since.read, self.since.epoch)
            self._at = None
        self.since = None
        if self._at is None:
            self._leave(learn)
        elif learn.budget is None:
            self.first_step = math.floor(self._at * (learn.total_steps - 1))

    def rest(self, learn: Trainer, *, epoch_over: bool, stopping: bool) -> None:  # noqa: ARG002
        """Take the state when the anneal is next; without places, at the last epoch before it."""
        if not epoch_over and learn.progress < (self._at or 0.0):
            return
        if not self._is_due(learn, epoch_over):
            return
        done = 1.0 if epoch_over else (learn.batch_index + 1) / learn.batches_per_epoch
        self._keep(learn, partial(taken_at_rest, learn, epoch_over), learn.epoch + done)
        self._leave(learn)

    def _is_due(self, learn: Trainer, epoch_over: bool) -> bool:
        at = self._at or 0.0
        if positioned_by(learn.data.train) is not None:
            return learn.progress >= at and (epoch_over or not learn.last_batch)
        if not epoch_over:
            return False
        updates, epochs = learn.steps_per_epoch, learn.epoch + 1
        # The progress of the last step of this epoch, and of the next one.
        this, following = (
            learn.progress * (n * updates - 1) / (epochs * updates) for n in (epochs, epochs + 1)
        )
        return this <= at < following

    def end(self, learn: Trainer) -> None:
        """Nothing is left to do."""

    def _leave(self, learn: Trainer) -> None:
        """Ask for nothing any more, so that steps cost what they cost without."""
        learn.loop.keep_asking(*(saver for saver in learn.loop.savers if saver is not self))

    def _keep(self, learn: Trainer, take: Callable[[], State], epoch: float) -> None:
        """Keep what `take` returns; where that fails the run goes on, for it needs no trunk."""
        try:
            self.trunk = self._kept(learn, take(), epoch)
        except (OSError, TypeError, ValueError) as error:
            text = f"the run before its anneal is not kept for extend: {error}"
            warnings.warn(text, stacklevel=2)

    def _kept(self, learn: Trainer, taken: State, epoch: float) -> Trunk | None:
        place = {
            "epoch": epoch,
            "progress": learn.progress,
            "values": learn.scheduler.values_at(self._at),
            "ends": learn.scheduler.values_at(1.0),
            "step": taken["run"]["place"]["step"],
        }
        trunk = Trunk(None, learn.plan, **place, path=self.path)
        if self.path is not None:
            current = {**taken["run"], "plan": learn.plan}
            checkpoint.save(self.path, {**taken, "run": current, "trunk": place})
        elif size(taken) > LIMIT:
            learn.say(
                f"the run before its anneal is {size(taken) / LIMIT:.1f} GB and not kept for "
                "extend; keep_trunk=path keeps it in a file"
            )
            return None
        else:
            trunk.state = copied(taken)
        return trunk


def taken_at_rest(learn: Trainer, epoch_over: bool) -> State:
    """Return the state of a run without its history, which goes on, and without who judges by it.

    Those begin anew: the best epoch of an anneal that is left behind is not to come back.
    """
    learn.training_step.guard.settle(learn)
    taken = state.capture(learn, epoch_over=epoch_over)
    own = zip(learn.loop.callbacks, taken["run"]["callbacks"], strict=True)
    taken["run"]["callbacks"] = [memory for cb, memory in own if not isinstance(cb, JUDGES)]
    return taken


def before_anneal(scheduler: Any, share: float) -> float | None:
    """Return the progress at which the rate last has `share` of its highest value.

    None where it does not fall below that, or cannot be known.
    """
    if not hasattr(scheduler, "values_at"):
        return None
    grid = [i / GRID for i in range(GRID + 1)]
    rates = [scheduler.values_at(p)["lr"][-1] for p in grid]
    enough = share * max(rates) * (1.0 - ROUNDING)
    last = max(i for i, rate in enumerate(rates) if rate >= enough)
    return grid[last] if 0 < last < GRID else None


def found(path: Path, plan: State, step: int | None = None) -> Trunk | None:
    """Return the trunk that is in `path`, if it is of `plan` and not beyond `step`.

    Args:
        path: the file.
        plan: of the fit.
        step: where a resumed run is; None is its end.
    """
    try:
        trunk = of_file(path)
    except (OSError, ValueError):
        return None
    if trunk.plan != plan or (step is not None and trunk.step > step):
        return None
    return trunk


def of_file(path: Path) -> Trunk:
    """Return the trunk that is in `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no trunk.
    """
    saved = checkpoint.load(path)
    if "trunk" not in saved:
        raise ValueError(
            f"trunk: {str(path)!r} holds none; keep_trunk= of a fit, or a Checkpoint, writes one"
        )
    return Trunk(None, saved["run"]["plan"], **saved["trunk"], path=path)


def size(value: Any) -> int:
    """Return the bytes of all tensors in nested containers.

    >>> import torch
    >>> size({"a": [torch.zeros(3)], "b": 1})
    12
    """
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(size, value.values()))
    return sum(map(size, value)) if isinstance(value, (list, tuple)) else 0


def copied(value: Any) -> Any:
    """Return nested containers with copies, on the CPU, of the tensors in them."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [copied(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
