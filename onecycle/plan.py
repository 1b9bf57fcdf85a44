"""The plan of a fit, as strings and numbers: what a file keeps of it, and compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from onecycle import distributed, optimizers, schedules
from onecycle.callback import Callback
from onecycle.callbacks.scheduler import OneCycleScheduler, ParamScheduler
from onecycle.data.reading import n_samples
from onecycle.data.sharding import is_part
from onecycle.schedules.spec import OWN, built, describe

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

Plan = dict[str, Any]
UNBOUNDED = 10**6  # epochs of a run that minutes limit
# What `OneCycleScheduler` takes beside the peak.
CYCLE = ("moms", "div_factor", "pct_start", "final_div", "warmup", "three_phase")
SETTINGS = (
    "samples",
    "batch_size",
    "steps_per_epoch",
    "loss_func",
    "opt_func",
    "accumulate",
    "precision",
    "clip",
    "train_bn",
    "augment",
)
# Of a group, but no setting; the last two choose between kernels for the same update.
OWN_KEYS = ("params", "lr", "initial_lr", "layer_group", "decay", "fused", "foreach")


def of_fit(
    learn: Trainer,
    method: str,
    epochs: range,
    n_epochs: int,
    lrs: Sequence[float],
    wd: float | None,
    scheduler: Callback | None,
) -> Plan:
    """Return the plan of a fit of `learn` that is about to begin."""
    step, train = learn.training_step, learn.data.train
    return {
        "samples": n_samples(train),
        "batch_size": batch_size(train),
        "steps_per_epoch": learn.data.steps_per_epoch,
        "loss_func": _name(learn.loss_func),
        "opt_func": _settings(learn.opt),
        "accumulate": step.accumulate,
        "precision": learn.network.precision,
        "clip": step.clip,
        "train_bn": learn.train_bn,
        "augment": [_call(function) for function in getattr(train, "augment", ())],
        "method": method,
        "epochs": len(epochs),
        "start_epoch": epochs.start,
        "tot_epochs": n_epochs,
        "lr" if method == "fit" else "max_lr": list(lrs),
        "wd": wd,
        "schedule": _described(scheduler),
    }


def batch_size(loader: Any) -> int | None:
    """Return the samples in a batch of all processes, None where they are not known.

    >>> batch_size([1, 2])
    """
    of_sampler = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    size: int | None = getattr(loader, "batch_size", None) or of_sampler
    return size if size is None or is_part(loader) else size * distributed.size()


def scheduler_of(plan: Plan) -> ParamScheduler | OneCycleScheduler | None:
    """Return the callback that moves the learning rate as `plan` says.

    Raises:
        ValueError: it is one that no file can hold.
    """
    spec = plan["schedule"]
    if spec is None:
        return None
    if spec["name"] == OneCycleScheduler.__name__:
        return OneCycleScheduler(rates(plan), **{name: spec[name] for name in CYCLE})
    if spec["name"] != ParamScheduler.__name__:
        raise ValueError(f"schedule: no file can hold a {spec['name']}")
    return ParamScheduler(
        {name: [built(one, schedules) for one in given] for name, given in spec["of"].items()}
    )


def span(plan: Plan) -> range:
    """Return the epochs that a fit of `plan` trains."""
    return range(plan["start_epoch"], plan["start_epoch"] + plan["epochs"])


def rates(plan: Plan) -> list[float]:
    """Return the learning rate of each layer group."""
    return list(plan["lr"] if plan["method"] == "fit" else plan["max_lr"])


def difference(saved: Plan, here: Plan) -> str | None:
    """Return the first thing in which two plans differ, in words; None if they are the same."""
    for name in [*saved, *(name for name in here if name not in saved)]:
        different = _difference(saved.get(name), here.get(name))
        if different is not None:
            of_all = ", of all processes together" if name == "batch_size" else ""
            return f"{name}: {different}{of_all}"
    return None


def _difference(there: Any, here: Any) -> str | None:
    if there == here:
        return None
    if isinstance(there, Mapping) and isinstance(here, Mapping) and _alike(there, here):
        return difference(dict(there), dict(here))
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = zip(there, here, strict=True)
        inside = next((text for a, b in pairs if (text := _difference(a, b)) is not None), None)
        if isinstance(there[0], Mapping):
            return inside
    return f"the saved run has {_short(there)}, this one {_short(here)}"


def _alike(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Tell whether two descriptions are of one builder, so that an argument differs."""
    return there.get("name") == here.get("name") != OWN


def settings(plan: Plan) -> Plan:
    """Return the part of a plan that is about the learner and its data."""
    return {name: plan[name] for name in SETTINGS}


def _name(loss_func: Any) -> str | None:
    if loss_func is None:
        return None
    return str(getattr(loss_func, "__qualname__", type(loss_func).__qualname__))


def _call(function: Any) -> str | None:
    """Return the name of a function, with the arguments that a partial one has."""
    arguments = getattr(function, "keywords", {})
    given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"{_name(getattr(function, 'func', function))}({given})"


def _settings(opt: torch.optim.Optimizer) -> list[Plan]:
    """Return the hyper-parameters of each parameter group, beside its learning rate."""
    left_out = {*OWN_KEYS, *optimizers.counters(opt)}
    return [
        {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in group.items()
            if name not in left_out and isinstance(value, (int, float, str, tuple, type(None)))
        }
        for group in opt.param_groups
    ]


def _described(scheduler: Callback | None) -> Plan | None:
    if scheduler is None:
        return None
    name = type(scheduler).__name__
    if isinstance(scheduler, OneCycleScheduler):
        options = {key: getattr(scheduler, key) for key in CYCLE}
        return {"name": name, **options, "moms": scheduler.moms and list(scheduler.moms)}
    if isinstance(scheduler, ParamScheduler):
        return {
            "name": name,
            "of": {k: list(map(describe, v)) for k, v in scheduler.schedules.items()},
        }
    return {"name": name}


def _short(value: Any) -> Any:
    """Return a list of one number as the number, and a schedule by its name."""
    if isinstance(value, Mapping) and "name" in value:
        return f"the function {value['of']}" if value["name"] == OWN else value["name"]
    return value[0] if isinstance(value, list) and len(value) == 1 else value
