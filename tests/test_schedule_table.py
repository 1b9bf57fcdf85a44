"""One table over all schedules: values at begin, borders and end, monotone phases, any length."""

import math
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import pytest

from onecycle import schedules
from onecycle.schedules import cosine, join, linear, one_cycle, sample

INF = math.inf


class Row(NamedTuple):
    """A schedule, its values at some points of progress, and the points between which it is
    monotone; a `jump` is where it is not continuous."""

    make: object
    points: dict
    phases: tuple = (0.0, 1.0)
    jumps: tuple = ()


def fixed(schedule):
    return lambda total_steps: schedule


def planned(builder, *args, **options):
    return lambda total_steps: builder(*args, **options, total_steps=total_steps)


three = planned(one_cycle, pct_start=0.25, three_phase=True)
clr = partial(planned, schedules.triangular, 1.0, 3.0, cycle_len=2, epochs=4)
TURNS = (0.0, 0.25, 0.5, 0.75, 1.0)
TABLE = {
    "constant": Row(fixed(schedules.constant(2.0)), {0: 2.0, 0.5: 2.0, 1: 2.0}),
    "linear": Row(fixed(linear(1.0, 3.0)), {0: 1.0, 0.5: 2.0, 1: 3.0}),
    "linear to zero": Row(fixed(linear()), {0: 1.0, 0.5: 0.5, 1: 0.0}),
    "cosine": Row(fixed(cosine(1.0, 3.0)), {0: 1.0, 1 / 3: 1.5, 0.5: 2.0, 1: 3.0}),
    "exponential": Row(fixed(schedules.exponential(1e-4, 1.0)), {0: 1e-4, 0.5: 1e-2, 1: 1.0}),
    "exp_decay": Row(
        fixed(schedules.exp_decay(gamma=0.5, epochs=4)), {0: 1.0, 0.25: 0.5, 0.5: 0.25, 1: 0.0625}
    ),
    "poly": Row(fixed(schedules.poly()), {0: 1.0, 0.5: 0.25, 1: 0.0}),
    "rex": Row(fixed(schedules.rex()), {0: 1.0, 0.5: 2 / 3, 0.8: 1 / 3, 1: 0.0}),
    "one_minus_sqrt": Row(fixed(schedules.one_minus_sqrt()), {0: 1.0, 0.25: 0.5, 1: 0.0}),
    "scaled": Row(fixed(schedules.scaled(linear(), 4.0)), {0: 4.0, 0.5: 2.0, 1: 0.0}),
    "join": Row(
        fixed(join(linear(0.0, 1.0), cosine(1.0, 0.0), at=[0.5])),
        {0: 0.0, 0.25: 0.5, 0.5: 1.0, 0.75: 0.5, 1: 0.0},
        (0.0, 0.5, 1.0),
    ),
    "one_cycle": Row(
        planned(one_cycle, pct_start=0.5, final_div=INF),
        {0: 0.04, 0.25: 0.52, 0.5: 1.0, 0.75: 0.5, 1: 0.0},
        (0.0, 0.5, 1.0),
    ),
    "one_cycle, three phases": Row(
        three, {0: 0.04, 0.25: 1.0, 0.5: 0.04, 1: 0.0004}, (0.0, 0.25, 0.5, 1.0)
    ),
    "one_cycle_momentum": Row(
        planned(schedules.one_cycle_momentum, pct_start=0.5),
        {0: 0.95, 0.25: 0.9, 0.5: 0.85, 1: 0.95},
        (0.0, 0.5, 1.0),
    ),
    "flat_cos": Row(
        planned(schedules.flat_cos, final_div=INF),
        {0: 1.0, 0.5: 1.0, 0.75: 1.0, 0.875: 0.5, 1: 0.0},
        (0.0, 0.75, 1.0),
    ),
    "wsd, 1-sqrt": Row(
        planned(schedules.wsd, warmup=0.25, cooldown=0.5),
        {0: 0.04, 0.125: 0.52, 0.25: 1.0, 0.5: 1.0, 0.625: 0.5, 1: 0.0},
        (0.0, 0.25, 0.5, 1.0),
    ),
    "wsd, linear": Row(
        planned(schedules.wsd, warmup=0.0, cooldown=0.5, shape="linear"),
        {0: 1.0, 0.5: 1.0, 0.625: 0.75, 1: 0.0},
        (0.0, 0.5, 1.0),
    ),
    "wsd, cos": Row(
        planned(schedules.wsd, warmup=0.5, cooldown=0.5, shape="cos", final_div=10),
        {0: 0.04, 0.5: 1.0, 0.75: 0.55, 1: 0.1},
        (0.0, 0.5, 1.0),
    ),
    "sgdr": Row(
        planned(schedules.sgdr, cycle_len=1, cycle_mult=3, epochs=4),
        {0: 1.0, 0.125: 0.5, 0.25: 1.0, 0.625: 0.5, 1: 0.0},
        (0.0, 0.25, 1.0),
        (0.25,),
    ),
    "triangular": Row(clr(), {0: 1.0, 0.125: 2.0, 0.25: 3.0, 0.5: 1.0, 0.75: 3.0, 1: 1.0}, TURNS),
    "triangular2": Row(
        clr(mode="triangular2"), {0: 1.0, 0.25: 3.0, 0.5: 1.0, 0.75: 2.0, 1: 1.0}, TURNS
    ),
    "exp_range": Row(
        clr(mode="exp_range", gamma=0.5), {0: 1.0, 0.25: 2.0, 0.5: 1.0, 0.75: 1.25, 1: 1.0}, ()
    ),
    "step_decay": Row(
        planned(schedules.step_decay, at=[2, 3], epochs=4),
        {0: 1.0, 0.49: 1.0, 0.5: 0.1, 0.74: 0.1, 0.75: 0.01, 1: 0.1**2},
        (0.0, 1.0),
        (0.5, 0.75),
    ),
    "repeat": Row(
        planned(schedules.repeat, linear(), 2), {0: 1.0, 0.25: 0.5, 0.5: 1.0, 1: 0.0},
        (0.0, 0.5, 1.0),
        (0.5,),
    ),
}  # fmt: skip


@pytest.fixture(params=TABLE)
def row(request):
    return TABLE[request.param]


def test_the_table_has_every_schedule():
    builders = set(schedules.__all__) - {"Schedule", "on_steps", "progress", "sample"}
    assert builders == {name.split(",")[0] for name in TABLE} - {
        "linear to zero", "triangular2", "exp_range"
    }  # fmt: skip


def test_values_at_begin_borders_and_end(row):
    schedule = row.make(None)
    found = {p: schedule(p) for p in row.points}
    assert found == pytest.approx(row.points, abs=1e-12)
    assert {0, 1} <= set(row.points)
    assert (found[0], found[1]) == (row.points[0], row.points[1])


def test_each_phase_is_monotone(row):
    schedule = row.make(None)
    for a, b in pairwise(row.phases):
        values = [schedule(a + (b - a) * i / 100) for i in range(100)]
        steps = [after - before for before, after in pairwise(values)]
        assert all(step <= 1e-12 for step in steps) or all(step >= -1e-12 for step in steps)


def test_it_is_continuous_but_for_its_jumps(row):
    schedule = row.make(None)
    tiny = 1e-9
    for i in range(1001):
        p = i / 1000
        if not any(abs(p - jump) < 1e-6 for jump in row.jumps):
            before, after = schedule(max(0.0, p - tiny)), schedule(min(1.0, p + tiny))
            # sqrt begins with an infinite slope: sqrt(2e-9) is 4.5e-5
            assert after == pytest.approx(before, abs=1e-4)
    for jump in row.jumps:
        assert abs(schedule(jump - tiny) - schedule(jump)) > 0.01


def test_any_number_of_steps_gives_values_between_the_bounds(row):
    low, high = min(row.points.values()), max(row.points.values())
    if row is TABLE["exp_range"]:
        high = 3.0
    for T in range(1, 51):
        for schedule in (row.make(None), row.make(T)):
            values = sample(schedule, T)
            assert all(low - 1e-12 <= value <= high + 1e-12 for value in values)
            if T > 3:
                assert values[-1] == pytest.approx(row.points[1], abs=1e-9)
