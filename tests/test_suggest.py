"""What a sweep says: landmarks, confidence, noise, and the result that is a float."""

import math

import numpy as np
import pytest

from onecycle import LRFind
from onecycle.suggest import suggest

LRS = np.logspace(-7, 1, 100)


DESCENT = 2.3 - 2.0 / (1 + (3e-3 / LRS) ** 1.5) + np.minimum(LRS / 0.3, 10) ** 2


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, -10.0])
def test_the_suggestion_does_not_depend_on_scale_and_sign_of_the_loss(scale, shift):
    assert suggest(LRS, scale * (DESCENT + shift)).lr == pytest.approx(suggest(LRS, DESCENT).lr)


def test_the_suggestion_lies_between_steepest_and_divergence():
    found = suggest(LRS, DESCENT)
    points = found.points
    assert points["steepest"] < found.lr < points["divergence"]
    assert points["steepest"] == pytest.approx(3e-3, rel=0.3)
    assert points["minimum"] == pytest.approx(LRS[DESCENT.argmin()], rel=0.25)
    bottom = DESCENT.argmin()
    lost = DESCENT[bottom:] > DESCENT[bottom] + 0.25 * (DESCENT[0] - DESCENT[bottom])
    assert points["divergence"] == pytest.approx(LRS[bottom + lost.argmax()], rel=0.25)


@pytest.mark.parametrize("n", range(30))
def test_a_short_curve_never_raises(n):
    assert suggest(LRS[:n], DESCENT[:n]).confidence in ("high", "low", "none")
    assert np.isnan(LRFind(LRS[:n], DESCENT[:n])) or n >= 10


@pytest.mark.parametrize("curve", [np.full(100, 2.3), np.linspace(1, 3, 100), np.full(100, np.nan)])
def test_a_curve_that_does_not_fall_has_no_suggestion(curve):
    found = LRFind(LRS, curve)
    assert (found.confidence, math.isnan(found)) == ("none", True)
    assert found.reason in repr(found)


def test_noise_without_descent_has_no_suggestion():
    noise = np.random.default_rng(0)
    answers = [suggest(LRS, noise.standard_normal(100)).confidence for _ in range(200)]
    assert answers.count("none") > 180
    assert answers.count("high") <= 2


def test_a_noisy_descent_is_found_and_ripples_before_it_do_not_count():
    noise = np.random.default_rng(0)
    found = [suggest(LRS, DESCENT + 0.4 * noise.standard_normal(100)) for _ in range(200)]
    assert np.mean([answer.confidence == "none" for answer in found]) < 0.05
    lrs = np.array([answer.lr for answer in found if answer.confidence != "none"])
    assert np.mean((lrs > 5e-3) & (lrs < 0.2)) > 0.95


def test_losses_that_end_before_they_fall_point_at_the_data():
    found = suggest(LRS, np.where(LRS < 1e-4, 2.3, np.nan))
    assert "stops being finite at 9" in found.reason
    assert "check the data" in found.reason


def test_a_sweep_that_ends_before_divergence_says_so():
    found = suggest(LRS[:70], DESCENT[:70])
    assert found.confidence == "low"
    assert "raise end_lr" in found.reason


def test_rates_that_do_not_rise_are_no_sweep():
    assert suggest([0.1] * 12, range(12, 0, -1)).reason == "the learning rates do not rise"


def test_a_noisy_curve_is_drawn_as_it_was_judged():
    noise = np.random.default_rng(1).standard_normal(100)
    found = [LRFind(LRS, DESCENT + scale * noise) for scale in (0.0, 2.0)]
    assert [r.suggestion.width for r in found] == [0.12, 0.3]
    assert np.abs(np.diff(found[1].smoothed[:50])).max() < 0.5
