"""Shapes from a first value to a last one, and what puts them together."""

import functools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from onecycle import checks
from onecycle.schedules.spec import Schedule, checked, described

GRID = 100  # parts of a schedule that are looked at


class Stepped:
    """A schedule that can put the beginnings of its parts on the steps of a run.

    Args:
        build: number of steps, or None for a continuous progress -> schedule.
    """

    def __init__(self, build: Callable[[int | None], Schedule]) -> None:
        self.build = build
        self._free = build(None)

    def __call__(self, p: float) -> float:
        """Return the value at progress `p`, of a run of unknown length."""
        return self._free(p)


def stepped(builder: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """Let what `builder` returns for no `total_steps` be told them later, by `on_steps`."""

    @described
    @functools.wraps(builder)
    def build(*args: Any, total_steps: int | None = None, **options: Any) -> Schedule:
        def planned(steps: int | None) -> Schedule:
            return builder(*args, total_steps=steps, **options)

        if total_steps is None:
            return Stepped(planned)
        return planned(checks.integer("total_steps", total_steps))

    return build


def on_steps(schedule: Schedule, total_steps: int) -> Schedule:
    """Return `schedule` with its parts beginning on the steps of a run, where it has parts.

    >>> from onecycle.schedules import wsd
    >>> on_steps(wsd(warmup=0.5), total_steps=10)(5 / 9)
    1.0
    """
    total_steps = checks.integer("total_steps", total_steps)
    checked("schedule", schedule)
    return schedule.build(total_steps) if isinstance(schedule, Stepped) else schedule


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
    total_steps = checks.integer("total_steps", total_steps)
    checked("schedule", schedule)
    return [schedule(progress(t, total_steps)) for t in range(total_steps)]


@described
def constant(value: float) -> Schedule:
    """Return p -> `value`.

    >>> constant(0.1)(0.7)
    0.1
    """
    value = checks.real("value", value)
    return lambda _: value


@described
def linear(start: float = 1.0, end: float = 0.0) -> Schedule:
    """Return p -> `start` (1 - p) + `end` p; as it stands, linear to zero.

    Source: as a schedule to zero, Bergsma et al. 2025 (arXiv 2502.15938).

    >>> linear(1.0, 3.0)(0.5)
    2.0
    """
    start, end = _ends(start, end)
    return lambda p: start * (1.0 - p) + end * p


@described
def cosine(start: float = 1.0, end: float = 0.0) -> Schedule:
    """Return p -> `start` w + `end` (1 - w) with w = (1 + cos(pi p)) / 2, half a cosine.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, for one period.

    >>> cosine(1.0, 0.0)(0.5)
    0.5
    """
    start, end = _ends(start, end)

    def schedule(p: float) -> float:
        weight = (1.0 + math.cos(math.pi * p)) / 2.0
        return start * weight + end * (1.0 - weight)

    return schedule


@described
def exponential(start: float, end: float) -> Schedule:
    """Return p -> `start`^(1 - p) `end`^p, a straight line on a logarithmic axis.

    Both must be above 0.

    Source: as the sweep of a learning rate finder, fastai's `lr_find`.

    >>> round(exponential(1e-4, 1.0)(0.5), 9)
    0.01
    """
    start, end = checks.positive("start", start), checks.positive("end", end)
    return lambda p: start ** (1.0 - p) * end**p


@described
def poly(start: float = 1.0, end: float = 0.0, power: float = 2.0) -> Schedule:
    """Return p -> `end` + (`start` - `end`) (1 - p)^`power`: steep at first for a power above 1.

    Written as a weighted mean, so that both ends are exact. `power` must be above 0.

    Source: Liu, Rabinovich and Berg 2015 (arXiv 1506.04579), the "poly" policy, with power 0.9.

    >>> poly(1.0, 0.0, power=2)(0.5)
    0.25
    """
    start, end = _ends(start, end)
    power = checks.positive("power", power)

    def schedule(p: float) -> float:
        weight: float = (1.0 - p) ** power
        return start * weight + end * (1.0 - weight)

    return schedule


@described
def rex(start: float = 1.0, end: float = 0.0) -> Schedule:
    """Return p -> `start` w + `end` (1 - w) with w = (1 - p) / (1 - p / 2).

    Between linear and flat: it falls slowly at first and steeply at last.

    Source: Chen, Wolfe and Kyrillidis 2021 (arXiv 2107.04197), the reflected exponential.

    >>> round(rex()(0.5), 4)
    0.6667
    """
    start, end = _ends(start, end)

    def schedule(p: float) -> float:
        weight = (1.0 - p) / (1.0 - p / 2.0)
        return start * weight + end * (1.0 - weight)

    return schedule


@described
def one_minus_sqrt(start: float = 1.0, end: float = 0.0) -> Schedule:
    """Return p -> `start` w + `end` (1 - w) with w = 1 - sqrt(p): steep at first.

    Source: Hagele et al. 2024 (arXiv 2405.18392), the cooldown they found best.

    >>> one_minus_sqrt()(0.25)
    0.5
    """
    start, end = _ends(start, end)

    def schedule(p: float) -> float:
        weight = 1.0 - math.sqrt(p)
        return start * weight + end * (1.0 - weight)

    return schedule


def _ends(start: Any, end: Any) -> tuple[float, float]:
    return checks.real("start", start), checks.real("end", end)


@stepped
def exp_decay(
    start: float = 1.0, *, gamma: float, epochs: float, total_steps: int | None = None
) -> Schedule:
    """Return `start` `gamma`^x after x epochs.

    Args:
        start: the first value, above 0.
        gamma: factor of one epoch, above 0.
        epochs: epochs of the run; with steps in their place, `gamma` is the factor of one step.
        total_steps: makes it exact at the first step of every epoch; without, x is `epochs` at the
            last step, one step early.

    Source: `torch.optim.lr_scheduler.ExponentialLR`, moved at every step.

    >>> from onecycle.schedules import sample
    >>> sample(exp_decay(gamma=0.5, epochs=2, total_steps=4), 4)[::2]
    [1.0, 0.5]
    """
    run = before_last(checks.positive("epochs", epochs), total_steps)
    start = checks.positive("start", start)
    return exponential(start, start * checks.positive("gamma", gamma) ** run)


def before_last(epochs: float, total_steps: int | None) -> float:
    """Return the epochs that lie before the last step: all but one step's share of a run."""
    return epochs if total_steps is None else epochs * (total_steps - 1) / total_steps


@described
def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Return p -> `factor` times `schedule`(p).

    >>> scaled(linear(1.0, 0.0), 0.1)(0.0)
    0.1
    """
    checked("schedule", schedule)
    factor = checks.real("factor", factor)
    if isinstance(schedule, Stepped):
        build = schedule.build
        return Stepped(lambda steps: scaled(build(steps), factor))
    return lambda p: factor * schedule(p)


@described
def join(*schedules: Schedule, at: Sequence[float]) -> Schedule:
    """Return `schedules` one after the other.

    Part i runs its own progress 0 .. 1 between `at[i-1]` and `at[i]`.

    Args:
        schedules: at least one.
        at: the progress at each border, one fewer than the schedules, in [0, 1] and not falling. At
            a border the later part holds. A part between two equal borders is absent.

    Raises:
        ValueError, TypeError: something that is no schedule; a number of borders that does not fit,
            or borders out of order or range.

    >>> warm_up_then_hold = join(linear(0.0, 1.0), constant(1.0), at=[0.5])
    >>> sample(warm_up_then_hold, 5)
    [0.0, 0.5, 1.0, 1.0, 1.0]
    """
    for schedule in schedules:
        checked("schedules", schedule)
    if not schedules:
        raise ValueError("schedules must hold at least one")
    borders = checks.several("at", at)
    if len(borders) != len(schedules) - 1:
        raise ValueError(
            f"at must hold one border fewer than there are schedules ({len(schedules)}), got {at!r}"
        )
    edges = [0.0, *(checks.real("at", border, low=0.0, high=1.0) for border in borders), 1.0]
    if edges != sorted(edges):
        raise ValueError(f"at must not fall, got {at!r}")

    def build(total_steps: int | None) -> Schedule:
        starts = [min(1.0, edge(share, total_steps)) for share in edges[:-1]]
        return joined(schedules, [*starts, 1.0], total_steps)

    return Stepped(build)


def joined(
    schedules: Sequence[Schedule], edges: Sequence[float], total_steps: int | None = None
) -> Schedule:
    """Return schedule i between `edges[i]` and `edges[i+1]`; the last edge may lie beyond 1.

    A last part that reaches beyond 1 is cut off there, not squeezed. With `total_steps` each part
    has its own parts on steps too; it reaches its last value where the next one begins.
    """
    if total_steps is not None:
        lengths = [(b - a) * (total_steps - 1) for a, b in pairwise(edges)]
        parts = zip(schedules, lengths, strict=True)
        schedules = [on_steps(one, round(length) + 1) for one, length in parts]
    borders = edges[1:-1]
    last = max(i for i in range(len(schedules)) if edges[i] < edges[i + 1])

    def schedule(p: float) -> float:
        i = min(bisect_right(borders, p), last)
        return schedules[i]((p - edges[i]) / (edges[i + 1] - edges[i]))

    return schedule


def ends_low(schedule: Schedule) -> bool:
    """Tell whether `schedule` ends below half of its highest value, so that it anneals.

    >>> ends_low(linear(1.0, 0.0)), ends_low(constant(1.0))
    (True, False)
    """
    values = [schedule(i / GRID) for i in range(GRID + 1)]
    return values[-1] < max(values) / 2


def edge(share: float, total_steps: int | None) -> float:
    """Return the progress at which the part begins that has `share` of the run before it.

    Of a run of T steps that is the step round(share T), on the grid, so that a part begins with
    exactly its first value; without `total_steps` it is `share` itself. Beyond the run the grid
    goes on.

    >>> edge(0.5, total_steps=11), edge(0.5, None)
    (0.6, 0.5)
    """
    if total_steps is None:
        return share
    step = round(share * total_steps)
    return step / (total_steps - 1) if total_steps > 1 else float(step > 0)
