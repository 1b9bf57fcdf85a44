"""Schedules: pure functions from progress (0 at the first step, 1 at the last) to a value.

A schedule is any `Callable[[float], float]`. It keeps no state: the value at a step is computed
from the step, so a run that is resumed or split sees the same numbers as one that is not. In `fit`
it multiplies the learning rate, so most builders begin at, or rise to, 1 by default.

The grid: step t of T steps (t = 0 .. T-1) has progress t / (T-1). The first batch trains at the
first value and the last batch at the last one, as in `torch.optim.lr_scheduler.OneCycleLR`.

Builders with parts take `total_steps`, which puts the beginning of every part on a step exactly.
Without it a border may lie between two steps, until `fit`, which knows the steps, puts it on one.
"""

from onecycle.schedules.cycle import one_cycle, one_cycle_momentum
from onecycle.schedules.policies import flat_cos, repeat, sgdr, step_decay, triangular, wsd
from onecycle.schedules.shapes import (
    constant,
    cosine,
    exp_decay,
    exponential,
    join,
    linear,
    on_steps,
    one_minus_sqrt,
    poly,
    progress,
    rex,
    sample,
    scaled,
)
from onecycle.schedules.spec import Schedule

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "exp_decay",
    "exponential",
    "flat_cos",
    "join",
    "linear",
    "on_steps",
    "one_cycle",
    "one_cycle_momentum",
    "one_minus_sqrt",
    "poly",
    "progress",
    "repeat",
    "rex",
    "sample",
    "scaled",
    "sgdr",
    "step_decay",
    "triangular",
    "wsd",
]
