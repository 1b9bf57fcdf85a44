"""Schedules: pure functions from progress (0 at the first step, 1 at the last) to a value.

A schedule is any `Callable[[float], float]`. It keeps no state: the value at a step is computed
from the step, so a run that is resumed or split sees the same numbers as one that is not. Every
builder here returns exactly its first value at progress 0 and exactly its last at 1, with no
rounding at the ends.

The grid: step t of T steps (t = 0 .. T-1) has progress t / (T-1). The first batch trains at the
first value and the last batch at the last one, as in `torch.optim.lr_scheduler.OneCycleLR`.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from onecycle import checks

Schedule = Callable[[float], float]


def progress(step: int, total_steps: int) -> float:
    """Return how far step `step` of `total_steps` is: 0 at the first, 1 at the last and ever after.

    >>> [progress(t, 5) for t in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, step / (total_steps - 1)) if total_steps > 1 else float(step > 0)


def sample(schedule: Schedule, total_steps: int) -> list[float]:
    """Return the value of `schedule` at each of `total_steps` steps.

    >>> sample(linear(1.0, 0.0), 5)
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return [schedule(progress(t, total_steps)) for t in range(total_steps)]


def constant(value: float) -> Schedule:
    """Return p -> `value`.

    >>> constant(0.1)(0.7)
    0.1
    """
    return lambda _: value


def linear(start: float, end: float) -> Schedule:
    """Return p -> `start` (1 - p) + `end` p.

    >>> linear(1.0, 3.0)(0.5)
    2.0
    """
    return lambda p: start * (1.0 - p) + end * p


def cosine(start: float, end: float) -> Schedule:
    """Return p -> `start` w + `end` (1 - w) with w = (1 + cos(pi p)) / 2, half a cosine.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, for one period.

    >>> cosine(1.0, 0.0)(0.5)
    0.5
    """

    def schedule(p: float) -> float:
        weight = (1.0 + math.cos(math.pi * p)) / 2.0
        return start * weight + end * (1.0 - weight)

    return schedule


def exponential(start: float, end: float) -> Schedule:
    """Return p -> `start`^(1 - p) `end`^p, a straight line on a logarithmic axis.

    Both must be above 0.

    >>> round(exponential(1e-4, 1.0)(0.5), 9)
    0.01
    """
    start, end = checks.positive("start", start), checks.positive("end", end)
    return lambda p: start ** (1.0 - p) * end**p


def polynomial(start: float, end: float, power: float = 1.0) -> Schedule:
    """Return p -> `end` + (`start` - `end`) (1 - p)^`power`: steep at first for a power above 1.

    Written as a weighted mean, so that both ends are exact. `power` must be above 0.

    >>> polynomial(1.0, 0.0, power=2)(0.5)
    0.25
    """
    power = checks.positive("power", power)

    def schedule(p: float) -> float:
        weight: float = (1.0 - p) ** power
        return start * weight + end * (1.0 - weight)

    return schedule


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Return p -> `factor` times `schedule`(p).

    >>> scaled(linear(1.0, 0.0), 0.1)(0.0)
    0.1
    """
    return lambda p: factor * schedule(p)


def join(*schedules: Schedule, at: Sequence[float]) -> Schedule:
    """Return `schedules` one after the other.

    Part i runs its own progress 0 .. 1 between `at[i-1]` and `at[i]`.

    Args:
        schedules: at least one.
        at: the progress at each border, one fewer than the schedules, in [0, 1] and not falling. At
            a border the later part holds. A part between two equal borders is absent.

    Raises:
        ValueError: a number of borders that does not fit, or borders out of order or range.

    >>> warm_up_then_hold = join(linear(0.0, 1.0), constant(1.0), at=[0.5])
    >>> sample(warm_up_then_hold, 5)
    [0.0, 0.5, 1.0, 1.0, 1.0]
    """
    if len(at) != len(schedules) - 1:
        raise ValueError(
            f"at must hold one border fewer than there are schedules ({len(schedules)}), got {at!r}"
        )
    edges = [0.0, *(checks.real("at", border, low=0.0, high=1.0) for border in at), 1.0]
    if edges != sorted(edges):
        raise ValueError(f"at must not fall, got {at!r}")
    borders = edges[1:-1]
    last = max(i for i in range(len(schedules)) if edges[i] < edges[i + 1])

    def schedule(p: float) -> float:
        i = min(bisect_right(borders, p), last)
        return schedules[i]((p - edges[i]) / (edges[i + 1] - edges[i]))

    return schedule


def one_cycle(
    max_lr: float,
    *,
    div_factor: float = 25.0,
    pct_start: float = 0.3,
    final_div: float | None = None,
    warmup: str = "linear",
    three_phase: bool = False,
    total_steps: int | None = None,
) -> Schedule:
    """Return the learning rate of the 1cycle policy: up to `max_lr`, then down far below the start.

    Two phases (the default), for T steps t = 0 .. T-1 with the peak at a = round(pct_start T):

    * t <= a: from max_lr / div_factor to max_lr, linear or, with `warmup="cos"`, half a cosine;
    * t >= a: half a cosine from max_lr to max_lr / final_div.

    Three phases: up to the peak, down as long to max_lr / div_factor, on to max_lr / final_div, all
    linear.

    Args:
        max_lr: the peak, above 0.
        div_factor: max_lr over the first value, above 0.
        pct_start: share of the steps before the peak, in [0, 1]; at most 0.5 with three phases.
        final_div: max_lr over the last value; `float("inf")` ends at 0. None means div_factor 1e4,
            or div_factor 100 with three phases.
        warmup: "linear" or "cos".
        three_phase: Smith's original shape instead of the two phases.
        total_steps: T, at least 1. The peak falls on step a exactly; a is kept within 1 .. T-2 so
            that the first step has the first value, one step the peak and the last step the last
            value. Two steps are the first value and the peak, one step is the first value. Three
            phases need four steps for all of that; in three they end where they began. None puts
            the peak at pct_start of a continuous progress.

    Raises:
        ValueError, TypeError: an argument outside of its range or of the wrong type.

    Source: Smith and Topin 2018 (arXiv 1708.07120), Smith 2018 (arXiv 1803.09820) for three phases;
    the two phases are fastai's. Equal to `OneCycleLR(pct_start=(a + 1) / T)` of torch where that is
    defined.

    >>> [round(lr, 4) for lr in sample(one_cycle(1.0, total_steps=10), 10)]
    [0.04, 0.36, 0.68, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0]
    """
    max_lr = checks.positive("max_lr", max_lr)
    start = max_lr / checks.positive("div_factor", div_factor)
    if final_div is None:
        final_div = div_factor * (100.0 if three_phase else 1e4)
    end = max_lr / checks.positive("final_div", final_div, allow_inf=True)
    return _cycle(start, max_lr, end, pct_start, warmup, three_phase, total_steps)


def one_cycle_momentum(
    moms: tuple[float, float] = (0.95, 0.85),
    *,
    pct_start: float = 0.3,
    warmup: str = "linear",
    three_phase: bool = False,
    total_steps: int | None = None,
) -> Schedule:
    """Return the momentum of the 1cycle policy, the mirror image of the learning rate.

    From moms[0] down to moms[1] while the learning rate rises, back to moms[0] while it falls, by
    the same shapes and at the same steps as `one_cycle`; in the third of three phases it stays at
    moms[0].

    Args:
        moms: the outer and the inner momentum, each in [0, 1).
        pct_start: as in `one_cycle`.
        warmup: as in `one_cycle`.
        three_phase: as in `one_cycle`.
        total_steps: as in `one_cycle`.

    Raises:
        ValueError, TypeError: an argument outside of its range or of the wrong type.

    Source: Smith 2018 (arXiv 1803.09820), section 4.3.

    >>> sample(one_cycle_momentum(total_steps=3), 3)
    [0.95, 0.85, 0.95]
    """
    outer, inner = (
        checks.real("moms", mom, low=0.0, high=1.0, open_high=True)
        for mom in checks.pair("moms", moms, "(0.95, 0.85)")
    )
    return _cycle(outer, inner, outer, pct_start, warmup, three_phase, total_steps)


def _cycle(
    start: float,
    peak: float,
    end: float,
    pct_start: float,
    warmup: str,
    three_phase: bool,
    total_steps: int | None,
) -> Schedule:
    """Return start -> peak -> end, or with three phases start -> peak -> start -> end."""
    checks.choice("warmup", warmup, ("linear", "cos"))
    at = _peak(pct_start, three_phase, total_steps)
    if not three_phase:
        rise = linear if warmup == "linear" else cosine
        return join(rise(start, peak), cosine(peak, end), at=[at])
    if warmup != "linear":
        raise ValueError(
            "warmup must be 'linear' with three_phase=True, which is linear throughout"
        )
    parts = linear(start, peak), linear(peak, start), linear(start, end)
    return join(*parts, at=[at, min(1.0, 2.0 * at)])


def _peak(pct_start: float, three_phase: bool, total_steps: int | None) -> float:
    """Return the progress of the peak, on a step of the grid when there is one."""
    highest = 0.5 if three_phase else 1.0
    pct_start = checks.real("pct_start", pct_start, low=0.0, high=highest)
    if total_steps is None:
        return pct_start
    total_steps = checks.integer("total_steps", total_steps)
    most = (total_steps - 2) // (2 if three_phase else 1)
    step = max(1, min(round(pct_start * total_steps), most))
    return progress(step, total_steps)
