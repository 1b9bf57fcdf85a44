"""Policies against the papers' own examples and torch's schedulers."""

import math
from itertools import pairwise

import pytest
import torch
from torch.optim import lr_scheduler

from onecycle.schedules import (
    exp_decay,
    flat_cos,
    join,
    linear,
    on_steps,
    one_cycle,
    repeat,
    sample,
    sgdr,
    step_decay,
    triangular,
    wsd,
)


def torch_rates(make, steps, lr=1.0):
    """What a scheduler of torch sets for each of `steps` steps."""
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = make(opt)
    rates = []
    for _ in range(steps):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("cycle_len", "cycle_mult", "restarts"),
    [
        (10, 2, [10, 30, 70, 150]),
        (1, 2, [1, 3, 7, 15, 31, 63, 127]),
        (50, 1, [50, 100, 150]),
        (100, 1, [100]),
    ],
)
def test_sgdr_restarts_where_the_paper_says(cycle_len, cycle_mult, restarts):
    """Loshchilov and Hutter, figure 1: T_0 and T_mult over 200 epochs."""
    batches, epochs = 10, 200
    T = batches * epochs
    schedule = sgdr(cycle_len=cycle_len, cycle_mult=cycle_mult, epochs=epochs, total_steps=T)
    rates = sample(schedule, T)
    jumps = [t for t, (before, after) in enumerate(pairwise(rates), start=1) if after > before]
    assert jumps == [epoch * batches for epoch in restarts]
    assert all(rates[t] == 1.0 for t in jumps)


@pytest.mark.parametrize(("T0", "mult", "T"), [(10, 2, 200), (7, 1, 50), (4, 3, 60)])
def test_sgdr_equals_torch(T0, mult, T):
    def make(opt):
        return lr_scheduler.CosineAnnealingWarmRestarts(opt, T0, mult, eta_min=0.01)

    schedule = sgdr(cycle_len=T0, cycle_mult=mult, epochs=T, final_div=100, total_steps=T)
    assert sample(schedule, T) == pytest.approx(torch_rates(make, T), rel=1e-9)


def test_a_cycle_of_sgdr_that_fills_the_run_ends_at_its_last_value():
    assert sample(sgdr(cycle_len=1, epochs=7, total_steps=70), 70)[-1] == 0.0


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_triangular_equals_torch(mode):
    """Smith, section 3: base_lr 0.001, max_lr 0.006, stepsize 2000 (here 20), gamma 0.99994."""
    T, half, gamma = 210, 20, 0.99994**100

    def make(opt):
        return lr_scheduler.CyclicLR(
            opt, 0.001, 0.006, step_size_up=half, mode=mode, gamma=gamma, cycle_momentum=False
        )

    options = {"cycle_len": 2 * half, "epochs": T, "mode": mode, "gamma": gamma}
    rates = sample(triangular(0.001, 0.006, **options, total_steps=T), T)
    assert rates == pytest.approx(torch_rates(make, T), rel=1e-9)


def test_the_published_example_of_clr():
    """Smith 2017: up from 0.001 to 0.006 in 2,000 iterations and back in 2,000; 8,000 in all."""
    clr = triangular(0.001, 0.006, cycle_len=4000, epochs=8000, total_steps=8000)
    rates = sample(clr, 8000)
    assert [rates[t] for t in (0, 2000, 4000, 6000)] == [0.001, 0.006, 0.001, 0.006]
    assert rates[1000] == pytest.approx(0.0035)
    assert rates[-1] == 0.001


def test_step_decay_equals_torch():
    def make(opt):
        return lr_scheduler.MultiStepLR(opt, [30, 60, 80])

    rates = sample(step_decay(at=[30, 60, 80], epochs=90, total_steps=90), 90)
    assert rates == pytest.approx(torch_rates(make, 90))


def test_step_decay_drops_at_the_last_step_too():
    assert sample(step_decay(at=[9], epochs=10, total_steps=10), 10)[-2:] == [1.0, 0.1]


@pytest.mark.parametrize("T", range(2, 50))
def test_an_annealed_run_ends_at_its_last_value_however_short(T):
    for schedule in (flat_cos(final_div=math.inf, total_steps=T), wsd(total_steps=T)):
        rates = sample(schedule, T)
        assert (rates[-1], max(rates)) == (0.0, 1.0)


def test_wsd_is_flat_between_warm_up_and_cooldown():
    rates = sample(wsd(total_steps=100), 100)
    assert rates.index(1.0) == 5
    assert [t for t in range(100) if rates[t] == 1.0] == list(range(5, 81))


def test_wsd_without_stable_part_is_linear_to_zero():
    rates = sample(wsd(warmup=0.0, cooldown=1.0, shape="linear", total_steps=11), 11)
    assert rates == pytest.approx(sample(linear(), 11))


def test_twenty_cycles_of_one_begin_alike():
    rates = sample(repeat(one_cycle(), 20, total_steps=400), 400)
    assert [rates[20 * i] for i in range(20)] == [0.04] * 20


def test_policies_join_like_any_schedule():
    warmed = join(linear(0.0, 1.0), sgdr(cycle_len=1, cycle_mult=1, epochs=3), at=[0.25])
    assert [round(warmed(p), 9) for p in (0.0, 0.125, 0.25, 0.375, 0.5)] == [0, 0.5, 1, 0.5, 1]


def test_a_repeated_cycle_is_so_many_runs_of_it_to_the_digit():
    once = sample(one_cycle(total_steps=23), 23)
    assert sample(repeat(one_cycle(), 20, total_steps=460), 460) == once * 20


@pytest.mark.parametrize("T", [1, 2, 3, 7, 20, 33])
def test_a_repeated_cycle_of_any_length(T):
    rates = sample(repeat(linear(), 3, total_steps=T), T)
    assert rates[0] == 1.0
    assert all(0.0 <= rate <= 1.0 for rate in rates)


def test_the_parts_of_a_join_begin_on_steps():
    both = join(linear(0.0, 1.0), wsd(warmup=0.3, shape="linear"), at=[0.5])
    rates = sample(on_steps(both, 20), 20)
    assert (rates[0], rates[10], rates[13], rates[-1]) == (0.0, 0.04, 1.0, 0.0)


def test_a_join_of_three_has_its_peak_on_a_step():
    for T in range(3, 40):
        assert max(sample(on_steps(join(linear(0.0, 1.0), linear(), at=[0.3]), T), T)) == 1.0


def test_exp_decay_equals_torch():
    def make(opt):
        return lr_scheduler.ExponentialLR(opt, 0.9)

    rates = sample(exp_decay(gamma=0.9, epochs=30, total_steps=30), 30)
    assert rates == pytest.approx(torch_rates(make, 30))


def test_exp_decay_has_its_factor_at_the_first_step_of_every_epoch():
    rates = sample(exp_decay(gamma=0.5, epochs=4, total_steps=40), 40)
    assert rates[::10] == pytest.approx([1.0, 0.5, 0.25, 0.125])


def test_wsd_warms_up_in_a_short_run_too():
    assert sample(wsd(total_steps=6), 6)[:2] == [0.04, 1.0]
    assert sample(wsd(warmup=0, total_steps=6), 6)[0] == 1.0
