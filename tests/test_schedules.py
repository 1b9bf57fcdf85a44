"""Schedules against their formulas, a table of exact values, and torch as an oracle."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onecycle.schedules import (
    constant,
    cosine,
    exponential,
    join,
    linear,
    one_cycle,
    one_cycle_momentum,
    poly,
    progress,
    sample,
)

PCT_STARTS = [0.0, 0.01, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9))
def test_both_ends_are_exact(start, end):
    for shape in (linear, cosine, exponential, poly):
        assert shape(start, end)(0.0) == start
        assert shape(start, end)(1.0) == end


@given(st.floats(0, 1), st.floats(0, 1))
def test_shapes_are_monotone(p, q):
    low, high = sorted((p, q))
    for shape in (linear, cosine, poly):
        assert shape(0.0, 1.0)(low) <= shape(0.0, 1.0)(high) + 1e-15


def peak(T, pct_start, three_phase=False):
    most = (T - 2) // 2 if three_phase else T - 2
    return max(1, min(round(pct_start * T), most))


@pytest.mark.parametrize("pct_start", PCT_STARTS)
@pytest.mark.parametrize("warmup", ["linear", "cos"])
def test_one_cycle_first_peak_and_last_are_exact_for_every_length(pct_start, warmup):
    for T in range(3, 61):
        cycle = one_cycle(0.3, pct_start=pct_start, warmup=warmup, total_steps=T)
        lrs = sample(cycle, T)
        assert lrs[0] == 0.3 / 25
        assert lrs[peak(T, pct_start)] == max(lrs) == 0.3
        assert lrs[-1] == min(lrs) == 0.3 / 250_000
        assert lrs.count(0.3) == 1


@pytest.mark.parametrize("pct_start", [p for p in PCT_STARTS if p <= 0.5])
def test_three_phases_first_peak_valley_and_last_are_exact(pct_start):
    for T in range(4, 61):
        a = peak(T, pct_start, three_phase=True)
        lrs = sample(one_cycle(0.3, pct_start=pct_start, three_phase=True, total_steps=T), T)
        assert (lrs[0], lrs[a], lrs[2 * a], lrs[-1]) == (0.3 / 25, 0.3, 0.3 / 25, 0.3 / 2500)


@pytest.mark.parametrize("three_phase", [False, True])
def test_one_and_two_steps_are_the_beginning_of_a_cycle(three_phase):
    cycles = [one_cycle(1.0, three_phase=three_phase, total_steps=T) for T in (1, 2)]
    assert sample(cycles[0], 1) == [0.04]
    assert sample(cycles[1], 2) == [0.04, 1.0]


def test_three_phases_in_three_steps_end_where_they_began():
    assert sample(one_cycle(1.0, three_phase=True, total_steps=3), 3) == [0.04, 1.0, 0.04]


@given(st.integers(3, 500), st.floats(0, 1))
def test_momentum_mirrors_the_rate(T, pct_start):
    moms = sample(one_cycle_momentum((0.95, 0.85), pct_start=pct_start, total_steps=T), T)
    assert (moms[0], min(moms), moms[-1]) == (0.95, 0.85, 0.95)
    assert moms.index(0.85) == peak(T, pct_start)


def test_ten_epochs_peak_at_the_first_batch_of_the_fourth():
    for batches in (1, 7, 100):
        lrs = sample(one_cycle(1.0, total_steps=10 * batches), 10 * batches)
        assert lrs.index(1.0) == 3 * batches


def torch_cycle(T, pct_start, **options):
    model = torch.nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        opt, max_lr=0.3, total_steps=T, pct_start=pct_start, **options
    )
    values = []
    for _ in range(T):
        values.append((opt.param_groups[0]["lr"], opt.param_groups[0]["momentum"]))
        opt.step()
        if len(values) < T:
            scheduler.step()
    return list(zip(*values, strict=True))


@pytest.mark.parametrize("T", [2, 3, 4, 7, 10, 33, 100])
@pytest.mark.parametrize("pct_start", PCT_STARTS)
def test_cosine_equals_torch(T, pct_start):
    options = {"pct_start": pct_start, "warmup": "cos", "total_steps": T}
    lrs, moms = torch_cycle(T, (peak(T, pct_start) + 1) / T, anneal_strategy="cos")
    assert sample(one_cycle(0.3, **options), T) == pytest.approx(lrs, rel=1e-9)
    assert sample(one_cycle_momentum(**options), T) == pytest.approx(moms, rel=1e-9)


@pytest.mark.parametrize("T", [4, 7, 10, 33, 100])
@pytest.mark.parametrize("pct_start", [0.1, 0.25, 0.3, 0.5])
def test_three_phases_equal_torch(T, pct_start):
    a = peak(T, pct_start, three_phase=True)
    options = {"pct_start": pct_start, "three_phase": True, "total_steps": T}
    lrs, moms = torch_cycle(
        T, (a + 1) / T, anneal_strategy="linear", three_phase=True, final_div_factor=100
    )
    assert sample(one_cycle(0.3, **options), T) == pytest.approx(lrs, rel=1e-9)
    assert sample(one_cycle_momentum(**options), T) == pytest.approx(moms, rel=1e-9)


@pytest.mark.parametrize("T", [4, 10, 33])
def test_linear_warm_up_equals_torch(T):
    a = peak(T, 0.3)
    lrs, _ = torch_cycle(T, (a + 1) / T, anneal_strategy="linear")
    assert sample(one_cycle(0.3, total_steps=T), T)[: a + 1] == pytest.approx(lrs[: a + 1])


@given(st.integers(1, 300), st.floats(0, 1), st.booleans())
def test_a_cycle_rises_then_falls(T, pct_start, three_phase):
    pct_start = pct_start / 2 if three_phase else pct_start
    lrs = sample(one_cycle(1.0, pct_start=pct_start, three_phase=three_phase, total_steps=T), T)
    top = lrs.index(max(lrs))
    assert all(a < b for a, b in pairwise(lrs[: top + 1]))
    assert all(a >= b for a, b in pairwise(lrs[top:]))


def test_progress_stays_at_the_end():
    assert [progress(t, 3) for t in (0, 1, 2, 3, 9)] == [0.0, 0.5, 1.0, 1.0, 1.0]
    assert [progress(t, 1) for t in (0, 1)] == [0.0, 1.0]


def test_join_leaves_out_parts_without_length():
    both = join(constant(1.0), constant(2.0), constant(3.0), at=[0.5, 0.5])
    assert sample(both, 3) == [1.0, 3.0, 3.0]
    assert sample(join(constant(1.0), constant(2.0), at=[1.0]), 2) == [1.0, 1.0]
    assert sample(join(constant(1.0), constant(2.0), at=[0.0]), 2) == [2.0, 2.0]


@pytest.mark.parametrize("at", [[], [0.2, 0.4], [-0.1], [1.1]])
def test_join_refuses_borders_that_do_not_fit(at):
    with pytest.raises(ValueError, match="at must"):
        join(constant(1.0), constant(2.0), at=at)


def test_join_refuses_falling_borders():
    with pytest.raises(ValueError, match="at must not fall"):
        join(constant(1.0), constant(2.0), constant(3.0), at=[0.6, 0.4])
