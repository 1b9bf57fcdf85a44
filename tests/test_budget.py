"""What a curve over budgets says: standard errors, knee, choice, guess and words."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from onecycle import budget
from onecycle.budget import Curve

values = arrays(np.float64, (2, 3, 7), elements=st.floats(0.125, 5.0, width=32))


def measured(means, n=400, noise=0.05, seeds=1, seed_noise=0.0, **options):
    """A curve of exactly these means; samples differ far more from each other than budgets do."""
    rng = np.random.default_rng(0)
    hard, shape = rng.exponential(size=n) * 3, (seeds, len(means), n)
    jitter = rng.normal(size=shape)
    jitter -= jitter.mean(axis=2, keepdims=True)
    rows = np.asarray(means)[:, None] + hard - hard.mean() + noise * jitter
    rows += seed_noise * rng.normal(size=(seeds, len(means), 1))
    return Curve([2**k for k in range(len(means))], rows, **options)


# ---- standard errors -------------------------------------------------------------------------


def test_of_one_seed_it_is_the_standard_error_of_the_mean():
    d = np.random.default_rng(1).normal(size=50)
    assert budget.standard_error(d) == pytest.approx(stats.sem(d), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_what_a_paired_bootstrap_over_samples_comes_to(weighted):
    rng = np.random.default_rng(2)
    a, b = rng.exponential(size=(2, 300)) + rng.exponential(size=300)
    w = rng.integers(1, 9, size=300).astype(float) if weighted else np.ones(300)

    def more(a, b, w, axis):
        return np.sum((a - b) * w, axis=axis) / np.sum(w, axis=axis)

    options = {"n_resamples": 4000, "rng": rng, "vectorized": True, "method": "basic"}
    resampled = stats.bootstrap((a, b, w), more, paired=True, **options).standard_error
    assert budget.standard_error(a - b, w) == pytest.approx(resampled, rel=0.05)


def test_the_spread_of_seeds_is_added():
    d = np.random.default_rng(3).normal(size=(4, 60))
    samples, seeds = stats.sem(d.mean(axis=0)), stats.sem(d.mean(axis=1))
    assert budget.standard_error(d) == pytest.approx(math.hypot(samples, seeds), rel=1e-12)


def test_it_covers_the_truth_of_seeds_and_samples():
    rng = np.random.default_rng(4)
    away = []
    for _ in range(400):
        seeds, samples = 0.2 * rng.normal(size=(4, 1)), rng.normal(size=50)
        d = seeds + samples + 0.3 * rng.normal(size=(4, 50))
        away.append(d.mean() / budget.standard_error(d))
    assert 0.8 < np.std(away) < 1.2


def test_one_difference_tells_nothing():
    assert math.isnan(budget.standard_error([0.3]))
    assert math.isnan(budget.standard_error([0.3, 0.5], [1, 0]))
    assert budget.standard_error([[0.3], [0.5]]) == pytest.approx(0.1)


@given(values, arrays(np.float64, 7, elements=st.floats(-50, 50, width=32)))
def test_what_makes_a_sample_hard_for_all_budgets_cancels(values, hard):
    plain, shifted = Curve([1, 2, 4], values), Curve([1, 2, 4], values + hard)
    for i, j in [(0, 1), (2, 0)]:
        assert shifted.difference(i, j) == pytest.approx(plain.difference(i, j), abs=1e-9)


@given(values, st.permutations(range(7)))
def test_the_order_of_samples_does_not_matter(values, order):
    w = np.arange(1.0, 8.0)
    one, other = Curve([1, 2, 4], values, w), Curve([1, 2, 4], values[:, :, order], w[order])
    assert other.difference(0, 2) == pytest.approx(one.difference(0, 2), abs=1e-12)


@given(values, st.floats(0.01, 100))
def test_gains_have_no_unit(values, scale):
    one, other = (budget.gains(Curve([1, 2, 4], v)) for v in (values, values * scale))
    np.testing.assert_allclose(other, one, rtol=1e-6, atol=1e-9)


@given(values)
def test_weights_are_as_good_as_repeats(values):
    w = [2, 1, 3, 1, 1, 1, 2]
    repeated = np.repeat(values, w, axis=2)
    np.testing.assert_allclose(Curve([1, 2, 4], values, w).means, Curve([1, 2, 4], repeated).means)


@given(values)
def test_higher_is_better_is_the_mirror_image(values):
    low, high = Curve([1, 2, 4], values), Curve([1, 2, 4], -values, higher_is_better=True)
    assert budget.smallest_within_one_se(low) == budget.smallest_within_one_se(high)
    np.testing.assert_array_equal(budget.gains(low), budget.gains(high))
    assert budget.verdict(low) == budget.verdict(high)


@given(values)
def test_the_choice_is_never_larger_than_the_best(values):
    curve = Curve([1, 2, 4], values)
    assert budget.smallest_within_one_se(curve) <= curve.budgets[curve.best]


def test_many_samples_take_little_memory():
    losses = np.ones((1, 8, 10_000), dtype=np.float32)
    tracemalloc.start()
    budget.verdict(Curve([2**k for k in range(8)], losses))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


# ---- what the curve says ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "epochs", "knee", "said"),
    [
        ([0.9, 0.7, 0.6, 0.5, 0.4], 16, None, "still improving at 16: the last doubling gained 2"),
        ([0.9, 0.5, 0.4, 0.4, 0.4], 4, 4, "flat after 4"),
        ([0.9, 0.5, 0.4, 0.5, 0.7], 4, 4, "overfits after 4: use 4, or regularise more"),
        ([0.9, 0.5, 0.4, 0.9, 0.6], 4, 4, "overfits after 4: use 4, or regularise more"),
        ([0.4, 0.5, 0.6, 0.7, 0.8], 1, 1, "overfits after 1: use 1, or regularise more"),
        ([0.9, 0.5, 0.4, 0.3, 0.3 - 0.002], 16, 8, "levels off at 16: the last doubling gained 0"),
        ([0.9, 0.5, 0.4, 0.3, math.nan], 8, 8, "diverged after 8: use 8, or a lower learning rate"),
        ([0.9, math.inf, 0.8], 4, 1, "diverged at 2: use 4, or a lower learning rate"),
        ([0.9], 1, None, "only 1 was tried: try 2"),
    ],
)
def test_what_a_curve_says(means, epochs, knee, said):
    curve = measured(means, noise=0.002)
    assert budget.smallest_within_one_se(curve) == epochs
    assert budget.knee(curve) == knee
    assert budget.verdict(curve).startswith(said)


def test_noise_between_one_and_two_standard_errors_is_unclear():
    curve = Curve([1, 2], [[1.0, 1.0, 1.0, 1.0], [0.7, 1.1, 0.8, 1.0]])
    more, se = curve.difference(0, 1)
    assert se < more < 2 * se
    assert budget.verdict(curve).startswith("unclear at 2: the last doubling gained 10.0 % ± 9.1;")


def test_a_smaller_budget_within_one_standard_error_is_enough():
    means = [0.9, 0.401, 0.4, 0.4005]
    assert budget.smallest_within_one_se(measured(means, noise=0.0001)) == 4
    assert budget.smallest_within_one_se(measured(means, noise=0.05)) == 2


def test_pairs_tell_what_the_means_alone_could_not():
    curve = measured([0.42, 0.4], noise=0.05)
    unpaired = stats.sem(curve.values[0, 0]) * math.sqrt(2)
    assert unpaired > 0.1
    assert budget.verdict(curve).startswith("still improving at 2: the last doubling gained")


def test_seeds_that_disagree_make_it_less_sure():
    one = measured([0.9, 0.5, 0.45], seeds=3)
    noisy = measured([0.9, 0.5, 0.45], seeds=3, seed_noise=0.1)
    assert budget.verdict(one).startswith("still improving")
    assert not budget.verdict(noisy).startswith("still improving")


def test_one_batch_decides_by_its_means():
    curve = Curve([1, 2, 4], [[0.9], [0.5], [0.4]])
    assert budget.smallest_within_one_se(curve) == 4
    assert budget.verdict(curve) == "still improving at 4: the last doubling gained 20.0 %; try 8"
    assert budget.extrapolate(curve) is None


def test_nothing_finite_is_said():
    curve = Curve([1, 2], [[math.nan], [math.inf]])
    assert budget.verdict(curve) == "diverged at every budget: use a lower learning rate"


def test_a_difference_is_weighted():
    assert Curve([1, 2], [[1.0, 3.0], [0.0, 0.0]], weights=[3, 1]).difference(0, 1)[0] == 1.5


def test_a_gain_is_counted_per_doubling():
    gain, se = budget.gains(Curve([1, 4], [[1.0, 2.0], [0.5, 1.0]]))
    assert gain == pytest.approx(0.25)
    assert se == pytest.approx(0.25 / 2 / 1.5)


@pytest.mark.parametrize(("before", "after", "gain"), [(0, 0, 0), (0, 1, -math.inf), (-2, -3, 0.5)])
def test_a_gain_on_a_mean_that_is_not_above_zero(before, after, gain):
    assert budget.gains(Curve([1, 2], [[before], [after]]))[0] == [gain]


@pytest.mark.parametrize(
    ("target", "higher", "epochs"), [(0.5, False, 2), (0.49, False, 4), (0.5, True, 1)]
)
def test_the_smallest_that_reaches_a_target(target, higher, epochs):
    curve = Curve([1, 2, 4], [[0.9], [0.5], [0.4]], higher_is_better=higher)
    assert budget.smallest_reaching(curve, target) == epochs


def test_a_target_that_nothing_reaches():
    assert budget.smallest_reaching(Curve([1, 2], [[0.9], [0.5]]), 0.3) is None


# ---- one doubling further --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "value", "low", "high"),
    [
        ([0.9, 0.7, 0.6], 0.55, 0.5, 0.6),
        ([0.9, 0.8, 0.6], 0.4, 0.4, 0.6),
        ([9.0, 0.9, 0.7, 0.6], 0.55, 0.5, 0.6),
    ],
)
def test_the_guess_goes_on_with_the_gains(means, value, low, high):
    guess = budget.extrapolate(measured(means, noise=1e-6))
    assert guess.epochs == 2 ** len(means)
    assert guess[1:] == pytest.approx((value, low, high), abs=1e-4)


def test_the_guess_of_an_accuracy_goes_up():
    guess = budget.extrapolate(measured([0.5, 0.7, 0.8], noise=1e-6, higher_is_better=True))
    assert guess[1:] == pytest.approx((0.85, 0.8, 0.9), abs=1e-4)


def test_the_truth_of_a_power_law_lies_in_the_band():
    law = [0.2 + 0.7 * 2 ** (-0.6 * k) for k in range(6)]
    guess = budget.extrapolate(measured(law[:5], noise=0.01))
    assert guess.value == pytest.approx(law[5], abs=0.005)
    assert guess.low < law[5] < guess.high


@pytest.mark.parametrize(
    ("means", "noise"),
    [([0.9, 0.7], 1e-6), ([0.9, 0.6, 0.7], 1e-6), ([0.6, 0.7, 0.5], 1e-6), ([0.9, 0.7, 0.69], 1)],
    ids=["two budgets", "worse at the end", "worse before", "noise"],
)
def test_there_is_no_guess_without_two_clear_gains(means, noise):
    assert budget.extrapolate(measured(means, noise=noise)) is None


@pytest.mark.parametrize(
    ("budgets", "values", "weights", "said"),
    [
        ([2, 1], [[1], [1]], None, "budgets must be rising"),
        ([], [], None, "budgets must be rising"),
        ([0, 1], [[1], [1]], None, "budgets must be at least 1"),
        ([1, 2], [1, 2], None, r"values must be \(seeds, 2 budgets, samples\), got the shape \(2,"),
        ([1, 2], [[], []], None, "values must be"),
        ([1, 2], [[1], [1]], [1, 2], "weights must be 1 numbers"),
        ([1, 2], [[1, 2], [1, 2]], [1, -1], "weights must be 2 numbers"),
    ],
)
def test_what_does_not_fit_is_told(budgets, values, weights, said):
    with pytest.raises(ValueError, match=said):
        Curve(budgets, values, weights)
