"""The arguments of a fit, checked, and what they become: epochs, callbacks, who keeps what."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from onecycle import checks, files
from onecycle import plan as plans
from onecycle.callback import Callback
from onecycle.callbacks.saving import Checkpoint
from onecycle.callbacks.scheduler import OneCycleScheduler, ParamScheduler
from onecycle.callbacks.time_budget import TimeBudget
from onecycle.callbacks.torch_scheduler import TorchScheduler
from onecycle.schedules import scaled
from onecycle.trunk import Trunk, TrunkKeeper

KeepTrunk = bool | str | os.PathLike[str]
PEAKED = 0.5  # of a 1cycle's peak, where its trunk is: before that too much would be trained anew
NAMES = {"lr": "the learning rate", "mom": "momentum", "wd": "weight decay"}


def span_of(epochs: int | None, minutes: float | None) -> range:
    """Return the epochs of a run, as many as it takes where only minutes are given."""
    if epochs is None and minutes is None:
        raise ValueError("epochs or minutes must be given: how long is the run to be?")
    return range(plans.UNBOUNDED if epochs is None else checks.integer("epochs", epochs))


def scheduler_of(schedule: Any, lrs: list[float]) -> ParamScheduler | TorchScheduler:
    """Return the callback that multiplies `lrs` by `schedule`, or moves them by torch's."""
    if isinstance(schedule, TorchScheduler):
        return schedule
    of_torch = isinstance(getattr(schedule, "func", schedule), type)
    if not callable(schedule) or of_torch or isinstance(schedule, LRScheduler):
        hint = "; for a torch scheduler use TorchScheduler(partial(...))"
        raise TypeError(f"schedule must be a function of progress, got {schedule!r}{hint}")
    for p in (0.0, 0.5, 1.0):
        try:
            checks.real(f"schedule({p})", schedule(p), low=0.0)
        except Exception as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            name = getattr(schedule, "__name__", "")
            builder = f"; is it {name}()?" if name.isidentifier() else ""
            raise kind(
                f"schedule must be a function of progress that returns a factor: {error}{builder}"
            ) from error
    return ParamScheduler({"lr": [scaled(schedule, base) for base in lrs]})


def sets(callback: Callback) -> set[str]:
    """Return the hyper-parameters that a scheduler of ours writes at every step."""
    if isinstance(callback, OneCycleScheduler):
        return {"lr"} if callback.moms is None else {"lr", "mom"}
    if isinstance(callback, ParamScheduler):
        short = {"momentum": "mom", "weight_decay": "wd"}
        return {short.get(name, name) for name in callback.schedules}
    return {"lr"} if isinstance(callback, TorchScheduler) else set()


def rate_of(given: Sequence[Callback], scheduler: Callback | None) -> Any:
    """Return who moves the learning rate, None for nobody; refuse what would be called twice.

    Raises:
        ValueError: one callback twice, or two that would set the same hyper-parameter.
    """
    twice = [cb for i, cb in enumerate(given) if any(cb is other for other in given[:i])]
    if twice:
        raise ValueError(
            f"callbacks: one {type(twice[0]).__name__} is there twice, and its hooks would be "
            "called twice; give it to the Learner or to the fit"
        )
    setters: dict[str, Callback] = {}
    for callback in [*given, *([] if scheduler is None else [scheduler])]:
        for name in sets(callback):
            if name in setters:
                both = f"{type(callback).__name__} and {type(setters[name]).__name__}"
                raise ValueError(
                    f"callbacks: {both} would both set {NAMES.get(name, name)}; use one of them"
                )
            setters[name] = callback
    return setters.get("lr")


def check_savers(savers: Sequence[Checkpoint]) -> None:
    """Refuse several that would write one file, or go on with several runs."""
    paths = [str(saver.path.absolute()) for saver in savers]
    if len(set(paths)) < len(paths):
        raise ValueError(f"callbacks: several Checkpoints with one path, got {paths}")
    if sum(saver.resume for saver in savers) > 1:
        raise ValueError("callbacks: one Checkpoint only can have resume=True")


def time_budget(minutes: float, n_epochs: int, rate: Any) -> TimeBudget:
    """Return what ends a run in time, whose learning rate is moved by `rate`."""
    if isinstance(rate, TorchScheduler):
        raise TypeError("minutes: a TorchScheduler goes by steps and not by the clock")
    return TimeBudget(minutes, bounded=n_epochs < plans.UNBOUNDED)


def trunk_keeper(
    keep_trunk: KeepTrunk,
    scheduler: Callback | None,
    callbacks: Sequence[Callback],
    since: Trunk | None,
) -> TrunkKeeper | None:
    """Return who keeps the run before its anneal: in memory, or beside what a Checkpoint saves."""
    if keep_trunk is False:
        return None
    path: Path | None
    if keep_trunk is True:
        beside = next((cb.path for cb in callbacks if isinstance(cb, Checkpoint)), None)
        path = beside and beside.with_name(f"{beside.name}.trunk")
    else:
        path = files.as_path(keep_trunk, "keep_trunk")
    written = (getattr(callback, "path", None) for callback in callbacks)
    if path and path.absolute() in [own.absolute() for own in written if isinstance(own, Path)]:
        raise ValueError(f"keep_trunk: {str(path)!r} is written by a callback, too; give another")
    share = PEAKED if isinstance(scheduler, OneCycleScheduler) else 1.0
    return TrunkKeeper(share, path, since)
