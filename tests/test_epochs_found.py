"""EpochFind: which measure decides, what it says, its table and its picture."""

import copy
import math
import pickle
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from onecycle import EpochFind
from onecycle.epochs_found import Measured

BUDGETS = [1, 2, 4, 8]
IMPROVING, FLAT, OVERFITS = [0.9, 0.7, 0.6, 0.52], [0.9, 0.5, 0.4, 0.4], [0.9, 0.5, 0.4, 0.6]
ACCURACY = [0.5, 0.7, 0.8, 0.9]


def samples(means, n=100, seeds=1):
    """Values of each sample with exactly these means and a little noise."""
    noise = np.random.default_rng(0).normal(size=(seeds, len(means), n)) * 0.005
    return np.asarray(means)[:, None] + noise - noise.mean(axis=2, keepdims=True)


def branches(**means):
    """Annealed values by budget: _2=0.5 is a mean at 2 epochs."""
    rows = samples(list(means.values()))
    return {int(name[1:]): rows[:, k] for k, name in enumerate(means)}


def find(means, annealed=None, accuracy=None, **options):
    measures = {"loss": Measured(samples(means), annealed or {})}
    if accuracy:
        measures["accuracy"] = Measured(samples(accuracy), higher_is_better=True)
    return EpochFind(BUDGETS, measures, **{"lr": 0.1, **options})


# ---- what decides ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "said"),
    [
        (
            IMPROVING,
            r"EpochFind\(8 epochs, no knee, still improving at 8: .* 13.3 % ± .*; try 16\)",
        ),
        (FLAT, r"EpochFind\(4 epochs, knee 4, flat after 4\)"),
        (OVERFITS, r"EpochFind\(4 epochs, knee 4, overfits after 4: use 4, or regularise more\)"),
    ],
)
def test_the_line(means, said):
    assert re.fullmatch(said, repr(find(means)))


def test_one_epoch_is_no_plural():
    assert repr(find([0.4, 0.4, 0.4, 0.4])).startswith("EpochFind(1 epoch, knee 1, ")


def test_averaged_weights_decide_whatever_annealed_ones_say():
    found = find(FLAT, branches(_1=0.1, _2=0.30, _4=0.38))
    assert (found.epochs, found.knee) == (4, 4)
    assert found.judged is found.averaged["loss"]
    assert found.verdict == "flat after 4"


def test_complete_cycles_are_called_so():
    found = find(FLAT, kind="cycle")
    assert found.table[0]["cycle_loss"] == pytest.approx(FLAT[0])
    assert "complete 1cycles" in names(found.plot())


def test_a_metric_decides_if_asked():
    found = find(OVERFITS, accuracy=ACCURACY, by="accuracy")
    assert (found.epochs, found.knee) == (8, None)
    assert found.verdict.startswith("by accuracy still improving at 8")
    assert find(OVERFITS, accuracy=ACCURACY).epochs == 4


@pytest.mark.parametrize(
    ("target", "epochs", "said"),
    [
        (0.75, 4, "reaches accuracy 0.75; by accuracy still improving at 8"),
        (0.95, 8, "no budget reaches accuracy 0.95; by accuracy still improving at 8"),
    ],
)
def test_a_target_is_reached_or_it_is_said(target, epochs, said):
    found = find(FLAT, accuracy=ACCURACY, by="accuracy", target=target)
    assert found.epochs == epochs
    assert found.verdict.startswith(said)


def test_a_target_is_a_value_of_what_is_judged():
    assert find(FLAT, branches(_1=0.35, _2=0.35), target=0.45).epochs == 4


def test_tol_moves_the_knee():
    assert [find(IMPROVING, tol=tol).knee for tol in (0.01, 0.2, 0.9)] == [None, 2, 1]


def test_losses_of_batches_are_weighted():
    batches = [[0.9, 0.1], [0.5, 0.5]]
    found = EpochFind([1, 2], {"loss": Measured(batches)}, lr=0.1, weights=[1, 7])
    assert found.averaged["loss"].means == pytest.approx([0.2, 0.5])


def test_several_seeds_are_seen_in_the_errors():
    values = samples(FLAT, seeds=3)
    apart = values + np.array([-0.1, 0.0, 0.1])[:, None, None] * np.arange(4)[:, None]
    calm, wild = (EpochFind(BUDGETS, {"loss": Measured(v)}, lr=0.1) for v in (values, apart))
    assert wild.table[0]["se"] > 5 * calm.table[0]["se"]


# ---- the table -------------------------------------------------------------------------------


def test_the_table_has_a_row_for_every_budget():
    found = find(FLAT, branches(_2=0.45, _4=0.38), accuracy=ACCURACY, seconds=30, cost=1.15)
    table = pd.DataFrame(found.table)
    names = "epochs averaged_loss annealed_loss averaged_accuracy annealed_accuracy se annealed_se"
    assert list(table) == [*names.split(), "gain", "gain_se", "minutes"]
    assert table["averaged_loss"].tolist() == pytest.approx(FLAT)
    assert table["annealed_loss"].tolist() == pytest.approx(
        [math.nan, 0.45, 0.38, math.nan], nan_ok=True
    )
    assert table["annealed_se"].isna().tolist() == [True, False, False, True]
    assert table["minutes"].tolist() == [0.5, 1.0, 2.0, 4.0]
    assert (found.cost, found.lr) == (1.15, 0.1)


def test_gains_and_errors_are_those_of_the_averaged_weights():
    table = pd.DataFrame(find(FLAT, branches(_2=0.45, _4=0.38)).table)
    assert table["gain"].tolist() == pytest.approx(
        [math.nan, 4 / 9, 0.2, 0.0], nan_ok=True, abs=1e-9
    )
    assert table["se"].min() == 0
    assert (table["se"].drop(table["averaged_loss"].idxmin()) < 0.002).all()


def test_a_notebook_shows_the_line_and_the_columns_that_say_something():
    html = find(FLAT)._repr_html_()
    assert "EpochFind(4 epochs, knee 4, flat after 4)" in html
    assert html.count("<tr>") == 5
    assert "averaged_loss" in html
    assert "annealed" not in html
    assert "minutes" not in html


# ---- finish ----------------------------------------------------------------------------------


def test_finish_takes_the_chosen_budget_or_another():
    asked = []
    found = find(FLAT, finish=asked.append)
    found.finish()
    found.finish(2)
    assert asked == [4, 2]
    with pytest.raises(ValueError, match="epochs must be one of 1, 2, 4, 8, got 3"):
        found.finish(3)


@pytest.mark.parametrize("copied", [copy.copy, lambda found: pickle.loads(pickle.dumps(found))])
def test_a_copy_keeps_the_numbers_alone(copied):
    found = find(FLAT, finish=lambda epochs: None)
    other = copied(found)
    assert repr(other) == repr(found)
    with pytest.raises(ValueError, match=r"keeps no weights, call fit_one_cycle\(4, 0.1\)"):
        other.finish()


# ---- the picture -----------------------------------------------------------------------------


def drawn(ax):
    """The lines with a name, by name."""
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def names(ax):
    return ax.get_legend_handles_labels()[1]


def test_the_picture_shows_the_curve_the_choice_and_the_verdict():
    found = find(FLAT)
    ax = found.plot()
    x, y = drawn(ax)["averaged weights"].get_data()
    assert x.tolist() == BUDGETS
    assert y.tolist() == pytest.approx(FLAT)
    assert drawn(ax)["chosen: 4 epochs"].get_xdata() == [4]
    assert ax.get_title() == "flat after 4"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epochs of the run", "validation loss")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    assert ax.child_axes == []


def test_the_band_is_the_standard_error_against_the_best():
    found = find(FLAT)
    band = found.plot().collections[0].get_paths()[0].vertices
    first = band[band[:, 0] == 1, 1]
    assert np.ptp(first) == pytest.approx(2 * found.table[0]["se"])


def test_annealed_budgets_are_points():
    ax = find(FLAT, branches(_2=0.45, _4=0.38)).plot()
    assert "annealed" in names(ax)
    assert drawn(ax)["chosen: 4 epochs"].get_ydata() == pytest.approx([FLAT[2]])


def test_a_guess_is_drawn_one_doubling_further_and_only_of_a_trend():
    found = find(IMPROVING)
    x, y = drawn(found.plot())["guess at 16"].get_data()
    assert list(x) == [8, 16]
    assert list(y) == pytest.approx([0.52, found.guess.value])
    assert found.guess.value == pytest.approx(0.52 - 0.08 * 0.8)
    for none in (find(FLAT), find(OVERFITS)):
        assert none.guess is None
        assert not [name for name in names(none.plot()) if "guess" in name]


@pytest.mark.parametrize(
    ("seconds", "label", "first"),
    [(0.05, "seconds", "0.05"), (40, "minutes", "0.67"), (4000, "hours", "1.1")],
)
def test_the_time_is_above(seconds, label, first):
    (above,) = find(FLAT, seconds=seconds).plot().child_axes
    assert above.get_xlabel() == f"{label} of training"
    assert above.get_xticklabels()[0].get_text() == first


def test_a_metric_that_decides_has_the_loss_beside_it():
    found = find(OVERFITS, accuracy=ACCURACY, by="accuracy", target=0.75)
    left = found.plot()
    assert left.get_ylabel() == "validation accuracy"
    assert "target 0.75" in names(left)
    assert [ax.get_ylabel() for ax in left.figure.axes[1:]] == ["validation loss"]
    own = plt.subplots()[1]
    assert found.plot(own) is own
    assert len(own.figure.axes) == 1


def test_seeds_are_drawn_faintly():
    values = samples(FLAT, seeds=3)
    ax = EpochFind(BUDGETS, {"loss": Measured(values)}, lr=0.1).plot()
    faint = [line for line in ax.lines if line.get_alpha() == 0.3]
    assert len(faint) == 3
    assert "± SE against the best, of samples and seeds" in names(ax)


def test_a_picture_of_what_diverged_or_has_no_errors():
    find([0.9, 0.5, math.nan, math.nan]).plot().figure.canvas.draw()
    one = EpochFind([1, 2], {"loss": Measured([[0.9], [0.5]], {1: [0.8], 2: [0.4]})}, lr=0.1)
    one.plot().figure.canvas.draw()
    EpochFind([1], {"loss": Measured([[0.9]])}, lr=0.1, seconds=1.0).plot().figure.canvas.draw()


# ---- what does not fit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annealed", "options", "said"),
    [
        ({}, {"by": "f1"}, "by must be one of 'loss', got 'f1'"),
        ({}, {"tol": -1}, "tol must lie in"),
        ({}, {"weights": [1]}, "weights must be 100 numbers"),
        (branches(_3=0.1), {}, "annealed must hold arrays (1 seeds, 100 samples) by budgets out"),
        ({2: [0.1, 0.2]}, {}, "got {2: (2,)}"),
    ],
)
def test_what_does_not_fit_is_told(annealed, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        find(FLAT, annealed, **options)


def test_a_measure_that_is_nowhere_finite_decides_nothing():
    with pytest.raises(ValueError, match="loss is finite at no budget: train at a lower lr"):
        find([math.nan] * 4)
    assert find([math.nan] * 4, accuracy=ACCURACY, by="accuracy").epochs == 8
