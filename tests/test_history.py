"""The history in other forms, gradient norms, borders between fits, the live picture."""

import builtins
import csv
import json

import numpy as np
import pytest
import torch
from helpers import Log, mlp, same, sgd, weights

from onecycle import CancelEpoch, Learner, LivePlot, accuracy


@pytest.fixture
def two_fits(data):
    """A learner with two fits, of two epochs and of one."""
    learn = Learner(data, mlp(), metrics=[accuracy], clip=float("inf"))
    learn.fit(2, 1e-3)
    learn.fit_one_cycle(1, 1e-2)
    return learn


# ---- forms of the history ----------------------------------------------------------------------


def test_the_history_by_column(two_fits):
    columns = two_fits.recorder.columns()
    assert list(columns) == ["epoch", "train_loss", "valid_loss", "accuracy", "lr", "seconds"]
    assert columns["accuracy"] == [row["accuracy"] for row in two_fits.recorder.history]


def test_a_column_has_nan_where_a_row_has_nothing(data):
    learn = Learner(data, mlp(), callbacks=[Log({("on_batch_begin", 2): CancelEpoch()})])
    learn.fit(2)
    first, second = learn.recorder.columns()["valid_loss"]
    assert np.isnan(first)
    assert second == learn.recorder.history[1]["valid_loss"]


def test_the_history_as_a_data_frame(two_fits):
    pd = pytest.importorskip("pandas")
    frame = two_fits.recorder.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame.to_dict("list") == two_fits.recorder.columns()


def test_without_pandas_there_is_an_error_with_a_remedy(two_fits, monkeypatch):
    importer = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pandas":
            raise ImportError
        return importer(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install pandas"):
        two_fits.recorder.to_pandas()


def test_the_history_as_csv(two_fits, tmp_path):
    path = two_fits.recorder.write_csv(tmp_path / "deep" / "history.csv")
    with path.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert rows == two_fits.recorder.history


def test_everything_as_json(two_fits, tmp_path):
    path = two_fits.recorder.write_json(tmp_path / "history.json")
    found = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert found["history"] == two_fits.recorder.history
    assert found["losses"] == two_fits.recorder.losses.tolist()


def test_json_has_null_for_what_is_not_finite(data, tmp_path):
    learn = Learner(data, mlp(), opt_func=sgd)
    learn.fit(1, 1e30)
    found = json.loads(learn.recorder.write_json(tmp_path / "h.json").read_text())
    assert found["losses"][-1] is None


# ---- gradient norms ----------------------------------------------------------------------------


def test_an_infinite_clip_measures_and_changes_nothing(data):
    plain, measured = Learner(data, mlp()), Learner(data, mlp(), clip=float("inf"))
    for learn in (plain, measured):
        torch.manual_seed(0)
        learn.fit(1)
    assert same(weights(plain), weights(measured))
    assert np.isnan(plain.recorder.grad_norms).all()
    assert np.isfinite(measured.recorder.grad_norms).all()


@pytest.mark.parametrize("clip", [0.1, float("inf")])
def test_the_norm_is_that_before_clipping(data, clip):
    from onecycle import Callback

    class Norms(Callback):
        def __init__(self):
            self.norms = []

        def on_backward_end(self, learn):
            grads = torch.cat([p.grad.flatten() for p in learn.model.parameters()])
            self.norms.append(grads.norm().item())

    norms = Norms()
    learn = Learner(data, mlp(), clip=clip, callbacks=[norms])
    learn.fit(1)
    before = learn.recorder.grad_norms
    assert norms.norms == pytest.approx(np.minimum(before, clip).tolist(), rel=1e-4)
    assert (before > 0.1).all()


def test_plot_grad_norm_draws_the_record(two_fits):
    (line,) = two_fits.recorder.plot_grad_norm().get_lines()
    np.testing.assert_array_equal(line.get_ydata(), two_fits.recorder.grad_norms)


def test_plot_grad_norm_says_how_to_get_one(data):
    learn = Learner(data, mlp())
    learn.fit(1)
    with pytest.raises(ValueError, match=r'clip=float\("inf"\)'):
        learn.recorder.plot_grad_norm()


# ---- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plot_losses", "plot_metrics", "plot_lr", "plot_grad_norm"])
def test_a_line_marks_where_a_fit_began(two_fits, name):
    ax = getattr(two_fits.recorder, name)()
    (borders,) = ax.collections
    assert [segment[:, 0].tolist() for segment in borders.get_segments()] == [[2, 2]]


def test_one_fit_has_no_border(learn):
    learn.fit(1)
    assert not learn.recorder.plot_losses().collections


def test_plot_losses_skips_and_scales(two_fits):
    ax = two_fits.recorder.plot_losses(skip_start=5, log=True)
    raw, smooth, valid = ax.get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), two_fits.recorder.losses[5:])
    np.testing.assert_array_equal(smooth.get_ydata(), two_fits.recorder.smooth_losses[5:])
    assert len(valid.get_ydata()) == 3
    assert ax.get_yscale() == "log"
    ax.figure.canvas.draw()


def test_plot_losses_refuses_a_negative_start(two_fits):
    with pytest.raises(ValueError, match="skip_start must be at least 0"):
        two_fits.recorder.plot_losses(skip_start=-1)


def test_the_live_picture_is_of_the_fit_that_ran(data):
    live = LivePlot(skip_start=2)
    learn = Learner(data, mlp(), callbacks=[live])
    learn.fit(1)
    learn.fit_one_cycle(2, 0.01)
    left, right = live.figure.axes
    recorder = learn.recorder
    raw, smooth, valid = left.get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), recorder.losses[12:])
    np.testing.assert_array_equal(smooth.get_ydata(), recorder.smooth_losses[12:])
    assert valid.get_xydata().tolist() == [
        [r["epoch"], r["valid_loss"]] for r in recorder.history[1:]
    ]
    np.testing.assert_array_equal(right.get_lines()[0].get_ydata(), recorder.lrs[12:])


def test_live_plot_as_an_argument(data):
    learn = Learner(data, mlp(), live_plot=True)
    assert [type(cb) for cb in learn.callbacks] == [LivePlot]


def test_the_live_picture_leaves_no_window(learn):
    from matplotlib import pyplot as plt

    learn.fit(1, callbacks=LivePlot)
    assert plt.get_fignums() == []


def test_a_live_picture_changes_nothing(data):
    plain, watched = Learner(data, mlp()), Learner(data, mlp(), live_plot=True)
    for learn in (plain, watched):
        torch.manual_seed(0)
        learn.fit(1)
    assert same(weights(plain), weights(watched))
