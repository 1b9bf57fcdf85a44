"""Schedulers: hyper-parameters written at every batch from schedules of progress."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from onecycle import optimizers, schedules, together
from onecycle.callback import Callback
from onecycle.optimizers import LR
from onecycle.schedules import Schedule
from onecycle.schedules.spec import check_values, checked

if TYPE_CHECKING:
    from onecycle.learner import Learner

Plan = dict[str, list[Schedule]]
RATE: dict[str, Any] = {"low": 0.0}
MOMENTUM: dict[str, Any] = {"low": 0.0, "high": 1.0, "open_high": True}
BLOCK = 256  # steps whose values are computed at once
INTERVALS = {"lr": RATE, "wd": RATE, "weight_decay": RATE, "mom": MOMENTUM, "momentum": MOMENTUM}


class ParamScheduler(Callback):
    """Set hyper-parameters before every batch to schedules of the run's progress.

    Args:
        schedules: for each hyper-parameter ("lr", "mom", "wd" or a key of the optimizer's groups) a
            function of progress, or one for each layer group. After the fit every hyper-parameter
            is what it was before it.

    Raises:
        TypeError: something that is no function of progress.
        ValueError, TypeError: when the fit begins, a name that the optimizer does not have, or a
            first, middle or last value that it cannot take.

    >>> from onecycle.schedules import linear
    >>> half_way_down = ParamScheduler({"wd": linear(0.1, 0.05)})
    """

    def __init__(self, schedules: Mapping[str, Schedule | Sequence[Schedule]]) -> None:
        if not isinstance(schedules, Mapping):
            raise TypeError(f"schedules must be a dict of name to schedule, got {schedules!r}")
        self.schedules: Plan = {}
        for name, value in schedules.items():
            if not isinstance(name, str):
                raise TypeError(f"schedules must be by names of hyper-parameters, got {name!r}")
            functions = value if isinstance(value, (list, tuple)) and value else [value]
            self.schedules[name] = [checked(f"schedules[{name!r}]", one) for one in functions]
        self._plan = self.schedules
        # The next values of every group of torch, from step `_first` on, of `_total` steps.
        self._ahead: dict[str, list[list[float]]] = {}
        self._first = self._length = self._groups = self._total = 0

    def plan(self, opt: torch.optim.Optimizer, total_steps: int | None) -> Plan:
        """Return for each hyper-parameter one schedule, or one for each layer group.

        Args:
            opt: the optimizer.
            total_steps: of the run, None where the clock is its progress.

        Raises:
            ValueError, TypeError: a name or a number of schedules does not fit the optimizer, or a
                value does not fit its hyper-parameter.
        """
        n = optimizers.n_groups(opt)
        for name, functions in self.schedules.items():
            known = optimizers.scalars(opt)
            if name not in (*known, "momentum", "weight_decay") or not optimizers.has(opt, name):
                raise ValueError(
                    f"schedules[{name!r}]: {together.name(opt)} has no such hyper-parameter, "
                    f"it has {', '.join(known)}"
                )
            if len(functions) not in (1, n):
                raise ValueError(
                    f"schedules[{name!r}] must hold 1 or {n} schedules, got {len(functions)}"
                )
            for function in functions:
                check_values(f"schedules[{name!r}]", function, **INTERVALS.get(name, {}))
        return {
            name: [
                function if total_steps is None else schedules.on_steps(function, total_steps)
                for function in functions
            ]
            for name, functions in self.schedules.items()
        }

    def values_at(self, p: float) -> dict[str, list[float]]:
        """Return the values at progress `p` of the run, one for all layer groups or one for each.

        >>> from onecycle.schedules import linear
        >>> ParamScheduler({"lr": linear(1.0, 0.0)}).values_at(0.25)
        {'lr': [0.75]}
        """
        return {name: [function(p) for function in own] for name, own in self._plan.items()}

    def on_train_begin(self, learn: Learner) -> None:
        """Plan this run, before the first step."""
        self._plan = self.plan(learn.opt, None if learn.budget else learn.total_steps)
        self._length = 0

    def on_epoch_begin(self, learn: Learner) -> None:  # noqa: ARG002
        """Forget what was computed ahead: a function may read what callbacks change by epochs."""
        self._length = 0

    def on_batch_begin(self, learn: Learner) -> None:
        """Write the values of this step."""
        if learn.budget is not None:
            for name, values in self.values_at(learn.progress).items():
                optimizers.write(learn.opt, name, values)
            return
        opt, step = learn.opt, learn.step - self._first
        planned = learn.total_steps, len(opt.param_groups)
        if not 0 <= step < self._length or planned != (self._total, self._groups):
            self._look_ahead(learn)
            step = 0
        for name, columns in self._ahead.items():
            optimizers.write_each(opt, name, [column[step] for column in columns])

    def _look_ahead(self, learn: Learner) -> None:
        """Compute the values of the next steps: at once, that takes less time."""
        self._first, self._total = learn.step, learn.total_steps
        total = self._total
        self._length = max(1, min(BLOCK, total - self._first))
        self._groups = len(learn.opt.param_groups)
        several = range(self._first, self._first + self._length)
        points = [schedules.progress(step, total) for step in several]
        columns = {
            name: [[function(p) for p in points] for function in functions]
            for name, functions in self._plan.items()
        }
        self._ahead = {name: optimizers.for_each(learn.opt, own) for name, own in columns.items()}


class OneCycleScheduler(Callback):
    """The 1cycle policy: learning rate up and down once over the whole run, momentum down and up.

    Args:
        max_lr: the peak: a number, `slice(first, last)`, `slice(last)` or one for each layer group.
        moms: outer and inner momentum; None leaves momentum alone. It means SGD's or RMSprop's
            `momentum`, where that is above 0, or the first of the `betas`.
        div_factor: max_lr over the first value.
        pct_start: share of the steps before the peak.
        final_div: max_lr over the last value; None means div_factor 1e4, or 100 with three phases.
        warmup: "linear" or "cos".
        three_phase: the original policy of three linear phases.

    The exact formulas are those of `onecycle.schedules.one_cycle`.

    Raises:
        ValueError, TypeError: an argument out of its range; a list whose length is not the number
        of groups.

    >>> callback = OneCycleScheduler(max_lr=0.1)
    """

    def __init__(
        self,
        max_lr: LR,
        moms: tuple[float, float] | None = (0.95, 0.85),
        *,
        div_factor: float = 25.0,
        pct_start: float = 0.3,
        final_div: float | None = None,
        warmup: str = "linear",
        three_phase: bool = False,
    ) -> None:
        self.max_lr = max_lr
        self.moms = moms
        self.div_factor = div_factor
        self.pct_start = pct_start
        self.final_div = final_div
        self.warmup = warmup
        self.three_phase = three_phase
        # Wrong arguments are told here, not in the middle of a fit.
        groups = len(max_lr) if isinstance(max_lr, (list, tuple)) else 1
        for peak in optimizers.spread("max_lr", max_lr, groups):
            self.lr_schedule(peak)
        self.mom_schedule()
        self._writer = ParamScheduler({})

    def lr_schedule(self, max_lr: float, total_steps: int | None = None) -> Schedule:
        """Return the learning rate of one layer group as a function of progress."""
        return schedules.one_cycle(
            max_lr,
            div_factor=self.div_factor,
            pct_start=self.pct_start,
            final_div=self.final_div,
            warmup=self.warmup,
            three_phase=self.three_phase,
            total_steps=total_steps,
        )

    def mom_schedule(self, total_steps: int | None = None) -> Schedule | None:
        """Return the momentum as a function of progress, or None when it is left alone."""
        if self.moms is None:
            return None
        return schedules.one_cycle_momentum(
            self.moms,
            pct_start=self.pct_start,
            warmup=self.warmup,
            three_phase=self.three_phase,
            total_steps=total_steps,
        )

    def plan(self, opt: torch.optim.Optimizer, total_steps: int | None) -> Plan:
        """Return the schedules of a run of `total_steps` steps: "lr" and, where it moves, "mom"."""
        n = optimizers.n_groups(opt)
        peaks = optimizers.spread("max_lr", self.max_lr, n, optimizers.ratios(opt))
        plan: Plan = {"lr": [self.lr_schedule(peak, total_steps) for peak in peaks]}
        momentum = self.mom_schedule(total_steps)
        if momentum is not None and optimizers.has_momentum(opt):
            plan["mom"] = [momentum]
        return plan

    def values_at(self, p: float) -> dict[str, list[float]]:
        """Return the values at progress `p` of the run that goes on, or of the last one."""
        return self._writer.values_at(p)

    def on_train_begin(self, learn: Learner) -> None:
        """Build the schedules of this run's steps."""
        plan = self.plan(learn.opt, None if learn.budget else learn.total_steps)
        if self.moms is not None and "mom" not in plan:
            warnings.warn(
                f"{_part(learn.opt)} has no momentum in use, so 1cycle moves the learning rate "
                "only; moms=None says that this is meant",
                stacklevel=2,
            )
        self._writer = ParamScheduler(plan)

    def on_batch_begin(self, learn: Learner) -> None:
        """Write learning rate and momentum of this step."""
        self._writer.on_batch_begin(learn)


def _part(opt: torch.optim.Optimizer) -> str:
    """Return the names of those optimizers without a momentum."""
    without = [one for one in together.members(opt) if not optimizers.has_momentum(one)]
    return " + ".join(map(together.name, without))
