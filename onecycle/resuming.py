"""Going on with a saved run: which one it is, and whether it is this one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onecycle import checkpoint, generators, plan, state
from onecycle.callback import Callback
from onecycle.data.reading import positioned_by

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

State = dict[str, Any]


def load(path: Path) -> tuple[Path, State] | None:
    """Return the newest undamaged checkpoint of `path`; None where there is none.

    Raises:
        ValueError: all are damaged, or the file holds no run.
    """
    found, damaged = checkpoint.newest(path)
    for file, reason in damaged:
        aside = file.with_name(f"{file.name}.damaged")
        with suppress(OSError):
            # Or the next save would let it take the place of one that is sound.
            file.replace(aside)
        warnings.warn(f"{reason}; going back to {found and found[0]}", stacklevel=4)
    if found is not None and "run" not in found[1]:
        raise ValueError(
            f"path: {str(found[0])!r} holds a model and no run: it is of Learner.save, and not of "
            "Checkpoint; learn.load takes it"
        )
    if found is not None and "trunk" in found[1]:
        raise ValueError(
            f"path: {str(found[0])!r} holds the trunk of a run: learn.extend(epochs, trunk=path) "
            "goes back to it"
        )
    return found


def check(learn: Trainer, file: Path, saved: State, callbacks: Sequence[Callback]) -> None:
    """Refuse to go on with the run of another learner or plan.

    Args:
        learn: its plan is that of the fit which is about to begin.
        file: where the state is from.
        saved: the state.
        callbacks: of this fit.

    Raises:
        ValueError: it says what differs first, and what was saved.
    """
    different = difference(learn, saved, learn.plan)
    different = different or plan.difference(saved["run"]["plan"], learn.plan)
    missing = state.missing_callbacks(callbacks, saved)
    if different is None and missing:
        different = f"callbacks: {', '.join(missing)} of the saved run is not here"
    if different is not None:
        raise ValueError(
            f"path: {str(file)!r} holds an unfinished run, and this one is another. {different}. "
            f"Make this one the same, or finish that one by learn.resume({str(file)!r}), or begin "
            "afresh with resume=False or another path"
        )


def difference(learn: Trainer, saved: State, here: plan.Plan) -> str | None:
    """Return how the learner differs from that of a saved run, in words; None if it does not.

    Args:
        learn: the learner.
        saved: the state.
        here: a plan of the learner's, for its settings.
    """
    of_model = checkpoint.first_difference(learn.model.state_dict(), saved["model"])
    of_opt = checkpoint.optimizer_difference(learn.opt, learn.model, saved["optimizer"])
    there = saved["run"]["plan"]
    return (
        (of_model and f"model: {of_model}")
        or _other_modules(learn, saved)
        or (of_opt and f"opt_func: the saved run {of_opt}")
        or plan.difference(plan.settings(there), plan.settings(here))
    )


def make_way(learn: Trainer, path: Path) -> str | None:
    """Set a finished run of another time aside, before `path` is written; return what to say.

    Raises:
        ValueError: the file there holds no run, so a Checkpoint would destroy what it has not made.
    """
    try:
        found = load(path)
    except checkpoint.DamagedError:
        return None  # nothing in it can be lost
    if found is None:
        return None
    file, saved = found
    run = saved["run"]
    if plans_of(saved) == learn.recorder.plans:  # this learner's own, of the fit before
        return None
    if run["finished"]:
        aside = path.with_name(f"{path.name}.finished")
        file.replace(aside)
        return f"{path}: the finished run there is now {aside.name}; a new one begins"
    return (
        f"{path}: the unfinished run there, of step {run['place']['step']}, is being replaced; "
        "resume=True goes on with one"
    )


def plans_of(saved: State) -> list[plan.Plan]:
    """Return the plans of all fits of a saved run, the running one last."""
    recorder = next(own for name, own in saved["run"]["callbacks"] if name == "Recorder")
    return list(recorder["plans"])


def _other_modules(learn: Trainer, saved: State) -> str | None:
    """Return how the modules differ that have no parameters, in words; None if they do not."""
    run = saved["run"]
    if len(run["modules"]) != len(learn.modules):
        return "loss_func: one of the two is a module, which has a state, and the other is not"
    for module, own in zip(learn.modules, run["modules"], strict=True):
        here = sum(1 for _ in module.modules())
        if here != len(own["modes"]):
            return f"model: the saved run has {len(own['modes'])} modules, this one {here}"
    kinds = generators.kinds(generators.found(learn.data.train, learn.modules))
    there = [kind for kind, _ in run["generators"]["held"]]
    if kinds != there:
        return f"data: the saved run draws from the generators {there}, this one from {kinds}"
    return None


def is_behind(learn: Trainer, saved: State, begun: int) -> bool:
    """Tell whether the saved run had finished this fit, and gone on to others.

    Args:
        learn: its plan is that of this fit.
        saved: the state.
        begun: fits that this learner has begun before.
    """
    *finished, running = plans_of(saved)
    if begun < len(finished):
        return plan.difference(finished[begun], learn.plan) is None
    if plan.difference(running, learn.plan) is None:
        return False
    return any(plan.difference(one, learn.plan) is None for one in finished)


def line(learn: Trainer, file: Path, saved: State) -> str:
    """Return what is restored, and from where on training goes on."""
    place, there = saved["run"]["place"], saved["run"]["plan"]
    last = there["start_epoch"] + there["epochs"]
    of = f" of {last}" if last < plan.UNBOUNDED else ""
    at = f"epoch {place['epoch'] + 1}{of}, batch {place['batches'] + 1}"
    if place["epoch"] == last:
        at = f"the end of epoch {last}"
    elif place["batches"] >= there["steps_per_epoch"]:
        at = f"the validation of epoch {place['epoch'] + 1}{of}"
    names = [name for name, own in saved["run"]["callbacks"] if own]
    text = (
        f"resumed from {file} at {at}, step {place['step']}: model, optimizer, generators, "
        f"{', '.join(names)}"
    )
    train = learn.data.train
    if positioned_by(train) is None:
        text += "; this loader cannot be positioned, so the epoch begins anew"
    elif getattr(train, "persistent_workers", False):
        text += "; what persistent workers draw is not exact"
    return text
