"""Policies: schedules put together from shapes, as the literature and fastai have them.

`epochs` and what is measured in it (`cycle_len`, `at`, `gamma`) may be in any unit, such as steps.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import count, cycle, pairwise

from onecycle import checks
from onecycle.schedules.shapes import (
    before_last,
    constant,
    cosine,
    edge,
    joined,
    linear,
    on_steps,
    one_minus_sqrt,
    progress,
    stepped,
)
from onecycle.schedules.spec import Schedule, checked

COOLDOWNS = {"linear": linear, "1-sqrt": one_minus_sqrt, "cos": cosine}
MODES = ("triangular", "triangular2", "exp_range")
ROUNDING = 1e-9  # of a run: what sums of cycle lengths may miss its end by


@stepped
def flat_cos(
    max_lr: float = 1.0,
    *,
    pct_start: float = 0.75,
    final_div: float = 1e5,
    total_steps: int | None = None,
) -> Schedule:
    """Return `max_lr` for a share `pct_start` of the steps, then half a cosine to the end.

    Args:
        max_lr: the flat part, above 0.
        pct_start: share of the steps before the anneal, in [0, 1].
        final_div: max_lr over the last value; `float("inf")` ends at 0.
        total_steps: puts the border on a step; from two steps on, the last has the last value.

    Source: fastai's `fit_flat_cos`.

    >>> from onecycle.schedules import sample
    >>> [round(lr, 5) for lr in sample(flat_cos(pct_start=0.5, total_steps=6), 6)]
    [1.0, 1.0, 1.0, 1.0, 0.5, 1e-05]
    """
    max_lr = checks.positive("max_lr", max_lr)
    end = max_lr / checks.positive("final_div", final_div, allow_inf=True)
    pct_start = checks.real("pct_start", pct_start, low=0.0, high=1.0)
    parts = [constant(max_lr), cosine(max_lr, end)]
    return joined(parts, [0.0, _begin(pct_start, total_steps), 1.0])


@stepped
def wsd(
    max_lr: float = 1.0,
    *,
    warmup: float = 0.05,
    cooldown: float = 0.2,
    shape: str = "1-sqrt",
    div_factor: float = 25.0,
    final_div: float = math.inf,
    total_steps: int | None = None,
) -> Schedule:
    """Return warm-up, stable, decay: a linear rise to `max_lr`, flat, then a cooldown.

    Args:
        max_lr: the flat part, above 0.
        warmup: share of the steps in the rise, in [0, 1]; at least one, unless it is 0.
        cooldown: share of the steps in the decay, in [0, 1]; with the warm-up at most 1.
        shape: of the cooldown: "1-sqrt", "linear" or "cos".
        div_factor: max_lr over the first value.
        final_div: max_lr over the last value; infinite, the last step trains at 0.
        total_steps: puts the borders on steps; from two steps on, the last has the last value.

    Source: Hu et al. 2024 (arXiv 2404.06395); Hagele et al. 2024 (arXiv 2405.18392), who found
    "1-sqrt" best and 10 to 20 % enough.

    >>> from onecycle.schedules import sample
    >>> sample(wsd(warmup=0.25, cooldown=0.25, shape="linear", div_factor=4), 9)
    [0.25, 0.625, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    max_lr = checks.positive("max_lr", max_lr)
    start = max_lr / checks.positive("div_factor", div_factor)
    end = max_lr / checks.positive("final_div", final_div, allow_inf=True)
    warmup = checks.real("warmup", warmup, low=0.0, high=1.0)
    cooldown = checks.real("cooldown", cooldown, low=0.0, high=1.0)
    if warmup + cooldown > 1.0:
        raise ValueError(f"warmup={warmup!r} and cooldown={cooldown!r} must be at most 1 together")
    decay = COOLDOWNS[checks.choice("shape", shape, tuple(COOLDOWNS))]
    down = _begin(1.0 - cooldown, total_steps)
    up = _begin(warmup, total_steps)
    if total_steps is not None and warmup > 0.0:
        up = max(up, progress(1, total_steps))
    parts = [linear(start, max_lr), constant(max_lr), decay(max_lr, end)]
    return joined(parts, [0.0, min(up, down), down, 1.0])


@stepped
def sgdr(
    max_lr: float = 1.0,
    *,
    cycle_len: float,
    epochs: float,
    cycle_mult: float = 2.0,
    final_div: float = math.inf,
    total_steps: int | None = None,
) -> Schedule:
    """Return warm restarts: half a cosine from `max_lr` down, again and again, ever longer.

    In cycle i, which has T_i epochs: end + (max_lr - end) (1 + cos(pi T_cur / T_i)) / 2, with T_cur
    the epochs since the restart, counted at every batch. A restart is at `max_lr` exactly. A last
    cycle that the run has no room for is cut off, not squeezed; one that ends with the run reaches
    its end value at the last step.

    Args:
        max_lr: the value at each restart, above 0.
        cycle_len: T_0, epochs in the first cycle.
        epochs: epochs in the run.
        cycle_mult: T_(i+1) over T_i, at least 1.
        final_div: max_lr over the value that a cycle ends at; infinite is 0.
        total_steps: puts the restarts on steps.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5 and section 3.

    >>> restarts = sgdr(cycle_len=10, cycle_mult=2, epochs=70)
    >>> [round(restarts(epoch / 70), 3) for epoch in (0, 5, 10, 20, 30, 50, 70)]
    [1.0, 0.5, 1.0, 0.5, 1.0, 0.5, 0.0]
    """
    max_lr = checks.positive("max_lr", max_lr)
    end = max_lr / checks.positive("final_div", final_div, allow_inf=True)
    cycle_len = checks.positive("cycle_len", cycle_len)
    cycle_mult = checks.real("cycle_mult", cycle_mult, low=1.0)
    down = cosine(max_lr, end)
    return _until(epochs, ((down, cycle_len * cycle_mult**i) for i in count()), total_steps)


@stepped
def triangular(
    base_lr: float = 0.25,
    max_lr: float = 1.0,
    *,
    cycle_len: float,
    epochs: float,
    mode: str = "triangular",
    gamma: float = 0.9,
    total_steps: int | None = None,
) -> Schedule:
    """Return the cyclical learning rate: up and down in straight lines between two bounds.

    base_lr + (max_lr - base_lr) w a, with w rising from 0 to 1 and falling back in each cycle, and
    the amplitude a = 1 ("triangular"), 1 / 2^i in cycle i = 0, 1, ... ("triangular2") or gamma^x
    after x epochs ("exp_range").

    Args:
        base_lr: the lower bound, above 0 and below `max_lr`.
        max_lr: the upper bound.
        cycle_len: epochs in a cycle, twice the paper's stepsize, which should be 2 to 10 epochs.
        epochs: epochs in the run; stop at the end of a cycle, where the rate is low.
        mode: "triangular", "triangular2" or "exp_range".
        gamma: factor of the amplitude after one epoch, for "exp_range".
        total_steps: puts turns on steps.

    Source: Smith 2017 (arXiv 1506.01186), section 3.1. There both bounds of exp_range decline;
    here, as in `torch.optim.lr_scheduler.CyclicLR`, only the amplitude.

    >>> clr = triangular(0.001, 0.006, cycle_len=4000, epochs=12000, mode="triangular2")
    >>> [round(clr(step / 12000), 5) for step in (0, 1000, 2000, 4000, 6000, 8000, 10000)]
    [0.001, 0.0035, 0.006, 0.001, 0.0035, 0.001, 0.00225]
    """
    base_lr = checks.positive("base_lr", base_lr)
    if base_lr >= checks.positive("max_lr", max_lr):
        raise ValueError(f"base_lr must be below max_lr={max_lr!r}, got {base_lr!r}")
    cycle_len = checks.positive("cycle_len", cycle_len)
    gamma = checks.positive("gamma", gamma)
    checks.choice("mode", mode, MODES)
    half = cycle_len / 2
    sides = cycle([(linear(0.0, 1.0), half), (linear(1.0, 0.0), half)])
    wave = _until(epochs, sides, total_steps)
    first = [
        edge(i * cycle_len / epochs, total_steps) for i in range(math.ceil(epochs / cycle_len))
    ]

    run = before_last(epochs, total_steps)

    def schedule(p: float) -> float:
        weight = wave(p)
        if mode == "triangular2":
            weight /= 2.0 ** (bisect_right(first, p) - 1)
        elif mode == "exp_range":
            weight *= gamma ** (run * p)
        return base_lr * (1.0 - weight) + max_lr * weight

    return schedule


@stepped
def step_decay(
    start: float = 1.0,
    *,
    at: Sequence[float],
    epochs: float,
    factor: float = 0.1,
    total_steps: int | None = None,
) -> Schedule:
    """Return `start`, multiplied by `factor` at each of the epochs `at`.

    Args:
        start: the first value, above 0.
        at: epochs before each drop, not falling, from 0 to `epochs`.
        epochs: epochs in the run.
        factor: of each drop, above 0.
        total_steps: puts the drops on the steps nearest to `at`.

    Source: the usual practice, as in He et al. 2016 (arXiv 1512.03385).

    >>> from onecycle.schedules import sample
    >>> [round(lr, 4) for lr in sample(step_decay(at=[3, 5], epochs=6, total_steps=6), 6)]
    [1.0, 1.0, 1.0, 0.1, 0.1, 0.01]
    """
    start, factor = checks.positive("start", start), checks.positive("factor", factor)
    epochs = checks.positive("epochs", epochs)
    each = checks.several("at", at)
    drops = [checks.real("at", epoch, low=0.0, high=epochs) / epochs for epoch in each]
    if drops != sorted(drops):
        raise ValueError(f"at must not fall, got {at!r}")
    borders = [edge(drop, total_steps) for drop in drops]
    return lambda p: start * factor ** bisect_right(borders, p)


@stepped
def repeat(schedule: Schedule, times: int, *, total_steps: int | None = None) -> Schedule:
    """Return `schedule` `times` times over, such as 20 cycles of one epoch.

    Args:
        schedule: function of progress.
        times: at least 1.
        total_steps: makes it the very numbers of so many runs, each from first value to last.

    >>> from onecycle.schedules import sample
    >>> sample(repeat(linear(1.0, 0.0), 2, total_steps=6), 6)
    [1.0, 0.5, 0.0, 1.0, 0.5, 0.0]
    """
    times = checks.integer("times", times)
    checked("schedule", schedule)
    if total_steps is None:
        return _until(times, cycle([(schedule, 1.0)]), None)
    first = [round(i * total_steps / times) for i in range(times + 1)]
    values: list[float] = []
    for begin, end in pairwise(first):
        run = on_steps(schedule, max(1, end - begin))
        values += [run(progress(t, end - begin)) for t in range(end - begin)]
    return lambda p: values[min(round(p * (total_steps - 1)), total_steps - 1)]


def _until(
    epochs: float, parts: Iterable[tuple[Schedule, float]], total_steps: int | None
) -> Schedule:
    """Return parts of (schedule, epochs) one after the other until the run is full."""
    epochs = checks.positive("epochs", epochs)
    schedules: list[Schedule] = []
    shares = [0.0]
    for schedule, length in parts:
        schedules.append(schedule)
        shares.append(shares[-1] + length / epochs)
        if shares[-1] > 1.0 - ROUNDING:
            break
    if shares[-1] > 1.0 + ROUNDING:
        return joined(schedules, [edge(share, total_steps) for share in shares])
    return joined(schedules, [*(_begin(share, total_steps) for share in shares[:-1]), 1.0])


def _begin(share: float, total_steps: int | None) -> float:
    """Return the edge at which a part begins, two steps before the end at the latest.

    So the last part has a step for its last value, however few steps there are.
    """
    if share >= 1.0 or total_steps is None:
        return min(1.0, share)
    latest = max(total_steps - 2, 0) / total_steps
    return edge(min(share, latest), total_steps)
