"""What a sweep says: landmarks, confidence, noise, and the result that is a float."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onecycle import LRFind
from onecycle import suggest as rules
from onecycle.found import LROverlay, LRRace, LRRangeTest
from onecycle.suggest import agreed, bracket, pooled, race, range_test, suggest

LRS = np.logspace(-7, 1, 100)


DESCENT = 2.3 - 2.0 / (1 + (3e-3 / LRS) ** 1.5) + np.minimum(LRS / 0.3, 10) ** 2
DROP = DESCENT[0] - DESCENT.min()
RULES = [rules.valley, rules.slide, rules.steep, rules.minimum]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, -10.0, 3000.0])
def test_the_suggestion_does_not_depend_on_scale_and_sign_of_the_loss(scale, shift):
    assert suggest(LRS, scale * (DESCENT + shift)).lr == pytest.approx(suggest(LRS, DESCENT).lr)


def test_the_landmarks_are_where_the_curve_has_them():
    points, bottom = suggest(LRS, DESCENT).points, DESCENT.argmin()

    def first(lost):
        return LRS[bottom + (DESCENT[bottom:] > DESCENT[bottom] + lost * DROP).argmax()]

    done = 1 - (DESCENT[:bottom] - DESCENT[bottom]) / DROP
    assert points["onset"] == pytest.approx(LRS[(done > 0.1).argmax()], rel=0.3)
    assert points["steepest"] == pytest.approx(3e-3, rel=0.3)
    assert points["settled"] == pytest.approx(LRS[(done > 0.95).argmax()], rel=0.3)
    assert points["minimum"] == pytest.approx(LRS[bottom], rel=0.25)
    assert points["divergence"] == pytest.approx(first(0.25), rel=0.3)


def test_the_suggestion_is_half_the_mean_of_settled_and_divergence():
    found = suggest(LRS, DESCENT)
    settled, divergence = found.points["settled"], found.points["divergence"]
    assert found.lr == pytest.approx(math.sqrt(settled * divergence) / 2)
    assert found.band == (found.lr / 2, divergence / 3)


@pytest.mark.parametrize("cliff", [1e-2, 2e-2])
def test_a_cliff_keeps_the_suggestion_away(cliff):
    found = suggest(LRS, np.where(cliff > LRS, DESCENT, 9.0))
    assert found.lr <= found.band[1] <= found.points["divergence"] / 2
    assert found.points["divergence"] == pytest.approx(cliff, rel=0.5)


def test_a_loss_that_comes_down_again_after_it_diverged_does_not_count():
    again = np.where(LRS > 3, 0.0, DESCENT)
    assert suggest(LRS, again).lr == pytest.approx(suggest(LRS, DESCENT).lr, rel=1e-3)


def test_a_moving_average_drags_the_minimum_and_the_smoothing_does_not():
    mean, ema = 0.0, []
    curve = np.minimum(DESCENT, 3.0)
    for k, loss in enumerate(curve, start=1):
        mean = 0.98 * mean + 0.02 * loss
        ema.append(mean / (1 - 0.98**k))
    true = LRS[curve.argmin()]
    assert LRS[np.argmin(ema)] > 5 * true
    assert suggest(LRS, curve).points["minimum"] == pytest.approx(true, rel=0.2)


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
    found = [LRFind(LRS, DESCENT + scale * noise) for scale in (0.0, 0.8)]
    assert [r.suggestion.width for r in found] == [0.15, 0.3]
    assert np.abs(np.diff(found[1].smoothed[:50])).max() < 0.5


@pytest.mark.parametrize(
    ("lrs", "losses", "said"),
    [
        (LRS[::5], DESCENT[::5], "raise num_it"),
        (LRS[55:], DESCENT[55:], "lower start_lr"),
        (LRS[:70], DESCENT[:70], "raise end_lr"),
        (LRS, np.where(LRS < 4e-3, DESCENT, np.nan), "before it rises: check the data"),
    ],
    ids=["few steps", "begins in the descent", "ends before divergence", "nan in the data"],
)
def test_a_doubtful_sweep_says_what_to_change(lrs, losses, said):
    found = suggest(lrs, losses)
    assert (found.confidence, math.isfinite(found.lr)) == ("low", True)
    assert said in found.reason


def test_a_sweep_that_begins_beyond_the_divergence_says_so():
    assert suggest(LRS[75:], DESCENT[75:]).reason.endswith("on: lower start_lr")


def test_a_closer_look_after_a_sparse_sweep_is_not_trusted():
    closeup = LRFind(LRS, DESCENT)
    assert LRFind(LRS, DESCENT, closeup=closeup).confidence == "high"
    found = LRFind(LRS[::6], DESCENT[::6], closeup=closeup)
    assert (found.confidence, found.reason) == ("low", "few steps for the range: raise num_it")
    assert float(found) == float(closeup)


@given(
    st.lists(
        st.floats(allow_nan=True, allow_infinity=True, width=32)
        | st.floats(min_value=0, max_value=5),
        max_size=120,
    )
)
def test_any_curve_gets_an_answer_in_order_or_none(losses):
    lrs = np.logspace(-6, 1, len(losses))
    found = suggest(lrs, losses)
    for rule in RULES:
        assert isinstance(rule(lrs, losses), float)
    if math.isnan(found.lr):
        assert found.reason
        return
    low, high = found.band
    assert low < found.lr <= high < lrs[-1]
    order = [p for p in (found.points[n] for n in rules.LANDMARKS if n != "steepest") if p == p]
    assert order == sorted(order)


# ---- the rules that users know ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "low", "high"),
    [
        (rules.steep, 2e-3, 5e-3),
        (rules.minimum, LRS[DESCENT.argmin()] / 13, LRS[DESCENT.argmin()] / 8),
        (rules.valley, 1e-5, 2e-4),
        (rules.slide, 1e-5, 3e-3),
    ],
)
def test_the_known_rules(rule, low, high):
    assert low < rule(LRS, DESCENT) < high


@pytest.mark.parametrize("rule", RULES)
def test_the_known_rules_work_in_units_of_the_curve(rule):
    assert rule(LRS, 50 * DESCENT - 7) == pytest.approx(rule(LRS, DESCENT))
    fine = np.logspace(-7, 1, 400)
    assert rule(fine, np.interp(np.log(fine), np.log(LRS), DESCENT)) == pytest.approx(
        rule(LRS, DESCENT), rel=0.5
    )


@pytest.mark.parametrize("rule", RULES)
def test_the_known_rules_take_lists_tensors_and_different_lengths(rule):
    lrs = torch.tensor(LRS)
    losses = torch.tensor(DESCENT, requires_grad=True)
    assert rule(lrs, losses) == rule(list(LRS), list(DESCENT)) == rule(LRS, DESCENT)
    assert rule(LRS[:60], DESCENT) == rule(LRS[:60], DESCENT[:60]) == rule(LRS, DESCENT[:60])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 9])
def test_the_known_rules_take_short_and_broken_curves(rule, n):
    assert isinstance(rule(LRS[:n], DESCENT[:n]), float)
    broken = np.where(np.arange(100) < 60 + n, DESCENT, np.nan)
    assert rule(LRS, broken) < LRS[60 + n]
    assert math.isnan(rule(LRS, np.full(100, 2.3)))
    assert math.isnan(rule([0.1] * 20, np.arange(20.0)))


# ---- more than one sweep ---------------------------------------------------------------------


def test_a_stopped_sweep_counts_on_and_one_that_is_not_finite_counts_as_infinite():
    sweeps = [[3.0, 2.0, 9.0], [3.2, 1.8], [2.8, 1.9, 5.0, 7.0], [3.0, np.nan]]
    assert pooled(sweeps).tolist() == pytest.approx([3.0, 1.95, 7.0, 8.0])


def test_three_sweeps_have_less_noise_than_one():
    noise = np.random.default_rng(0)
    lrs = {
        n: [
            float(LRFind(LRS, *(DESCENT + 0.3 * noise.standard_normal((n, 100)))))
            for _ in range(100)
        ]
        for n in (1, 3)
    }
    spread = {n: np.nanstd(np.log10(values)) for n, values in lrs.items()}
    assert spread[3] < 0.8 * spread[1]


def test_the_band_of_sweeps_ends_where_the_first_of_them_would_diverge():
    early = np.where(LRS < 0.02, DESCENT, 9.0)
    found = LRFind(LRS, DESCENT, DESCENT, early)
    assert found.band[1] == LRFind(LRS, early).band[1]
    assert found.band[0] <= found <= found.band[1]


def test_sweeps_without_a_descent_count_against_the_others():
    one, none = suggest(LRS, DESCENT), suggest(LRS, np.full(100, 2.3))
    found = agreed(one, [one, none, none])
    assert (found.confidence, found.lr) == ("low", one.lr)
    assert "only 1 of 3 sweeps" in found.reason


def test_sweeps_that_disagree_are_not_trusted():
    one, other = suggest(LRS, DESCENT), suggest(LRS / 10, DESCENT)
    assert agreed(one, [one, one]).confidence == "high"
    found = agreed(one, [one, other])
    assert found.confidence == "low"
    assert "1.0 decades apart" in found.reason


def test_a_closer_look_goes_from_before_the_onset_to_beyond_the_divergence():
    points = suggest(LRS, DESCENT).points
    assert bracket(LRS, DESCENT) == pytest.approx((points["onset"] / 3, 4 * points["divergence"]))
    assert bracket(LRS, np.full(100, 2.3)) is None
    assert bracket(LRS[:5], DESCENT[:5]) is None


@pytest.mark.parametrize("losses", [DESCENT[:60], np.where(LRS < 0.3, DESCENT, 1e6)])
def test_the_smoothed_curve_is_the_one_that_is_judged(losses):
    found = LRFind(LRS[: len(losses)], losses)
    at = np.interp(np.log10(found.points["minimum"]), np.log10(found.lrs), found.smoothed)
    assert at == pytest.approx(found.smoothed.min())
    assert found.smoothed.max() < 2 * DESCENT[0]


def test_reasons_of_a_closer_look_do_not_blame_a_range_that_nobody_chose():
    closeup = LRFind(LRS[:70], DESCENT[:70])
    assert closeup.reason == "the loss did not diverge: raise end_lr"
    found = LRFind(LRS, DESCENT, closeup=closeup)
    assert found.reason == "the loss did not diverge in the closer look: raise num_it"


def test_each_sweep_is_smoothed_by_its_own_width():
    found = LRFind(LRS[::8], DESCENT[::8], closeup=LRFind(LRS, DESCENT))
    alone = LRFind(LRS[::8], DESCENT[::8])
    np.testing.assert_array_equal(found.smoothed, alone.smoothed)
    assert np.abs(found.smoothed - DESCENT[::8]).max() > 0.01


def test_few_steps_that_show_nothing_are_not_blamed_on_the_model():
    assert suggest(LRS[::9], np.full(12, 2.3)).reason == "few steps for the range: raise num_it"
    assert "already trained" in suggest(LRS, np.full(100, 2.3)).reason


def test_stopped_sweeps_of_a_trained_model_are_not_taken_for_broken_data():
    flat = np.where(LRS < 0.1, 0.05, 0.3)
    found = LRFind(LRS[:85], flat[:85], flat[:82], flat[:80])
    assert found.reason.startswith("no descent: already trained")


def test_a_sweep_that_rises_before_it_falls_is_not_trusted():
    losses = np.concatenate([[2.3] * 5, np.linspace(3, 9, 15), DESCENT[40:]])
    found = suggest(np.logspace(-2, 1, len(losses)), losses)
    assert "rises from the first step on: lower start_lr" in found.reason


def test_a_closer_look_is_what_is_judged():
    fine = np.logspace(-4, 0, 200)
    closeup = LRFind(fine, np.interp(np.log(fine), np.log(LRS), DESCENT))
    found = LRFind(LRS, np.full(100, 2.3), closeup=closeup)
    assert (float(found), found.band) == (float(closeup), closeup.band)
    assert len(found.losses) == 100


# ---- race and range test ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "lr", "confidence", "said"),
    [
        ([{0.01: 1.2, 0.1: 0.9, 1.0: 2.2}, {0.1: 0.5}], 0.1, "high", ""),
        ([{0.01: 1.2, 0.1: 0.9, 1.0: 2.2}, {0.1: 0.5, 0.01: 0.4}], 0.01, "low", "edge"),
        ([{0.01: 1.2, 0.1: 0.9, 1.0: 1.1}, {0.1: 0.5, 1.0: 0.4}], 1.0, "low", "who leads"),
        ([{0.01: 0.1, 0.1: 0.9, 1.0: math.nan}, {0.01: 0.1}], 0.01, "low", "edge"),
        ([{0.01: 2.4, 0.1: math.nan}], math.nan, "none", "no rate lowered the validation loss"),
        ([{0.1: 0.4}], 0.1, "high", ""),
        ([{0.01: 0.9, 0.1: math.inf}, {0.01: math.nan}], math.nan, "none", "no rate"),
    ],
)
def test_race(rounds, lr, confidence, said):
    found = race(rounds, start=2.3)
    assert (str(found.lr), found.confidence) == (str(lr), confidence)
    assert said in found.reason


def test_a_score_that_breaks_down_and_recovers_counts_until_then():
    lrs = np.linspace(0, 1, 40)
    score = np.where(lrs < 0.5, 0.8 * (1 - np.exp(-lrs / 0.08)), 0.1 + 1.7 * (lrs - 0.5))
    found = range_test(lrs, score)
    assert found.lr < 0.4
    assert found.band[1] < 0.6


def test_the_band_of_a_race_is_its_second_round():
    assert race([{0.01: 1.2, 0.1: 0.9, 1.0: 2.2}, {0.1: 0.5, 0.01: 0.6}], 2.3).band == (0.01, 0.1)


def test_range_test_takes_the_rate_where_the_score_slows():
    lrs = np.linspace(0, 1, 25)
    rise = 0.9 * (1 - np.exp(-lrs / 0.1)) - np.where(lrs > 0.7, 2 * (lrs - 0.7), 0)
    found = range_test(lrs, rise)
    assert 0.2 < found.lr < 0.45
    assert found.band[0] < found.lr < found.band[1] < 0.9
    assert found.confidence == "high"


@pytest.mark.parametrize(
    ("scores", "confidence", "said"),
    [
        (np.linspace(0, 0.8, 25), "low", "did not fall again"),
        (np.full(25, 0.1), "none", "does not rise"),
        (np.linspace(0.8, 0.1, 25), "none", "does not rise"),
        (np.full(25, np.nan), "none", "only 0 finite scores"),
    ],
)
def test_range_test_says_what_is_wrong(scores, confidence, said):
    found = range_test(np.linspace(0, 1, 25), scores)
    assert found.confidence == confidence
    assert said in found.reason


# ---- results ---------------------------------------------------------------------------------

FOUND = LRFind(LRS, DESCENT, closeup=LRFind(LRS, DESCENT, DESCENT))
RESULTS = {
    "sweep": FOUND,
    "nothing": LRFind(LRS, np.full(100, 2.3)),
    "one point": LRFind([0.1], [2.3]),
    "race": LRRace([{0.01: 1.2, 0.1: 0.9, 1.0: 2.3}, {0.1: 0.5, 0.01: 0.6}], 2.3, 20),
    "lost race": LRRace([{0.1: math.nan}], 2.3, 20),
    "linear": LRRangeTest(np.linspace(0.01, 1, 30), -(np.linspace(-1, 1, 30) ** 2), "accuracy"),
    "overlay": LROverlay("wd", {0.0: FOUND, 0.1: LRFind(LRS, np.full(100, 2.3))}),
}


def test_a_result_needs_a_sweep_and_a_rate_of_zero_is_no_sweep():
    with pytest.raises(ValueError, match="sweeps must hold"):
        LRFind([0.1])
    found = LRFind(np.linspace(0, 1, 30), np.linspace(3, 2, 30))
    assert (found.reason, found.confidence) == ("the learning rates do not rise", "none")
    found.plot()
    assert "do not rise" in range_test([0.5] * 25, np.linspace(0, 1, 25)).reason


@pytest.mark.parametrize("found", RESULTS.values(), ids=RESULTS)
def test_every_result_is_a_float_with_a_curve_a_picture_and_a_table(found):
    assert isinstance(found, float)
    assert str(float(found)) == str(float(pickle.loads(pickle.dumps(found))))
    assert repr(found) == repr(copy.deepcopy(found))
    assert len({len(column) for column in found.curve.values()}) == 1
    assert found.plot().get_xlabel() == "learning rate"
    assert set(found.points) == set(rules.LANDMARKS)
    table = found._repr_html_()
    assert table.startswith("<table")
    if math.isnan(found):
        assert found.reason
        assert found.confidence == "none"


def test_columns_of_each_result():
    columns = {name: list(found.curve) for name, found in RESULTS.items()}
    assert columns["sweep"] == ["sweep", "lr", "loss", "smoothed"]
    assert RESULTS["sweep"].curve["sweep"].tolist() == [1] * 100 + [2] * 100
    assert columns["race"] == ["lr", "steps", "valid_loss"]
    assert columns["linear"] == ["lr", "accuracy", "smoothed"]
    assert columns["overlay"] == ["wd", "sweep", "lr", "loss", "smoothed"]
    assert RESULTS["race"].curve["steps"].tolist() == [20, 20, 20, 40, 40]


def test_an_overlay_is_a_mapping():
    found = RESULTS["overlay"]
    assert (list(found), len(found), found[0.0]) == ([0.0, 0.1], 2, FOUND)
    assert found.reason == "it holds a result for each of 2 values of wd: take one, as found[0.0]"
    lines = str(found).splitlines()
    assert lines[0] == f"wd=0: {FOUND!r}"
    assert lines[1].startswith("wd=0.1: LRFind(nan: no descent")


def test_pictures_mark_every_landmark():
    ax = FOUND.plot()
    labels = ax.get_legend_handles_labels()[1]
    assert [name for name in rules.LANDMARKS if name in labels] == list(rules.LANDMARKS)
    assert f"suggestion {FOUND:.2e}" in labels
    assert "no suggestion" in RESULTS["nothing"].plot().get_title()
    assert RESULTS["overlay"].plot().get_legend_handles_labels()[1] == ["wd 0", "wd 0.1"]
