"""How a run is trained for longer once its schedule is over: the strategies of `Learner.extend`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onecycle import checks, schedules
from onecycle import plan as plans
from onecycle.callback import Callback
from onecycle.callbacks.scheduler import OneCycleScheduler, ParamScheduler
from onecycle.schedules import Schedule
from onecycle.trunk import Trunk

STRATEGIES = ("auto", "trunk", "decay", "cycle", "constant")
COOLDOWN = 0.65  # share of the whole run in which a trunk is annealed
CONSTANT = 0.1  # of the peak, the rate that goes on
Plan = dict[str, Any]


@dataclass
class Extension:
    """A fit that goes on with another.

    Attributes:
        epochs: to train, of a plan of `n_epochs`.
        n_epochs: of that plan.
        lrs: one for each layer group.
        scheduler: moves the rates.
        since: the trunk to go back to; None goes on from the end.
        line: says all that.
    """

    epochs: range
    n_epochs: int
    lrs: list[float]
    scheduler: Callback | None
    since: Trunk | None
    line: str


def planned(
    epochs: int,
    strategy: str,
    last: Plan,
    peaks: Sequence[float],
    trunk: Trunk | None,
    cooldown: float,
    constant: float = CONSTANT,
    *,
    momentum: bool = True,
) -> Extension:
    """Return the extension of a run by `epochs` epochs.

    Args:
        epochs: beyond the end of the run.
        strategy: see `Learner.extend`.
        last: plan of the run.
        peaks: the rate to go on from, of each layer group.
        trunk: of the run, if there is one.
        cooldown: share of the whole run in which a trunk is annealed.
        constant: share of the peak for "constant".
        momentum: whether the optimizer has one in use.

    Raises:
        ValueError: an argument out of its range; "trunk" without one.
    """
    checks.integer("epochs", epochs)
    checks.choice("strategy", strategy, STRATEGIES)
    checks.real("cooldown", cooldown, low=0.0, high=1.0, open_low=True)
    if strategy == "auto":
        strategy = "decay" if trunk is None else "trunk"
    if strategy == "trunk":
        return _from_trunk(epochs, last, peaks, trunk, cooldown)
    peak, length = peaks[-1], "1 epoch" if epochs == 1 else f"{epochs} epochs"
    moms = _moms(last) if momentum else None
    scheduler: Callback | None
    if strategy == "cycle":
        scheduler = OneCycleScheduler(list(peaks), moms)
        line = f"another cycle of {length} up to {peak:.2e}"
    elif strategy == "constant":
        peaks = [constant * peak for peak in peaks]
        scheduler = None
        line = f"{length} at {peaks[-1]:.2e}"
    else:
        plan: dict[str, list[Schedule]] = {"lr": [schedules.linear(peak, 0.0) for peak in peaks]}
        if moms is not None:
            plan["mom"] = [schedules.linear(moms[1], moms[0])]
        scheduler = ParamScheduler(plan)
        line = f"{length} from {peak:.2e} straight down to 0"
    return Extension(range(epochs), epochs, list(peaks), scheduler, None, f"extend: {line}")


def rates(last: Plan, trunk: Trunk | None) -> list[float]:
    """Return the rate to go on from, of each layer group: the peak of a cycle, or a flat rate."""
    flat = trunk is not None and not _is_cycle(last)
    return list(trunk.values["lr"]) if trunk is not None and flat else plans.rates(last)


def _from_trunk(
    epochs: int, last: Plan, peaks: Sequence[float], trunk: Trunk | None, cooldown: float
) -> Extension:
    if trunk is None:
        raise ValueError(
            "strategy='trunk' goes back to where a run was before its anneal, and the last fit has "
            "not kept that; fit_one_cycle and fit_wsd do, with keep_trunk=True"
        )
    first = int(trunk.epoch)
    total = _length(last, trunk) + epochs
    border = max(trunk.epoch, total * (1.0 - cooldown)) / total
    values = {**trunk.values, "lr": list(peaks)}
    moms = _moms(last)
    if moms is not None and "mom" in values:
        values["mom"] = [moms[1]]
    plan = {
        name: [_flat_then_down(*ends, border) for ends in zip(own, trunk.ends[name], strict=True)]
        for name, own in values.items()
    }
    flat = f"flat at {peaks[-1]:.2e} to epoch {border * total:.4g}, then"
    line = (
        f"extend: back to epoch {trunk.epoch:.4g}, before the anneal; "
        f"{flat if border * total > trunk.epoch else f'from {peaks[-1]:.2e}'} "
        f"down to {trunk.ends['lr'][-1]:.1e} at {total}: {total - trunk.epoch:.4g} epochs to train"
    )
    scheduler = ParamScheduler(plan)
    return Extension(range(first, total), total, values["lr"], scheduler, trunk, line)


def _flat_then_down(value: float, end: float, border: float) -> Schedule:
    parts = schedules.constant(value), schedules.cosine(value, end)
    return schedules.join(*parts, at=[border])


def _length(last: Plan, trunk: Trunk) -> int:
    """Return the epochs of the run; one that minutes have ended had as many as its pace says."""
    planned = int(last["tot_epochs"])
    if last["minutes"] is None:
        return planned
    return min(planned, math.ceil(trunk.epoch / trunk.progress - 0.1))


def _moms(last: Plan) -> tuple[float, float] | None:
    """Return outer and inner momentum of a 1cycle, None where the run had another schedule."""
    moms = last["schedule"]["moms"] if _is_cycle(last) else None
    return None if moms is None else (moms[0], moms[1])


def _is_cycle(last: Plan) -> bool:
    return last["schedule"] is not None and last["schedule"]["name"] == OneCycleScheduler.__name__
