"""The history in other forms, gradient norms, borders between fits, the live picture."""

import builtins
import csv
import json

import numpy as np
import pytest
import torch
from helpers import Clock, Log, mlp, same, sgd, weights

from onecycle import Callback, CancelEpoch, Learner, LivePlot, accuracy


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
    learn = Learner(data, mlp(), opt_func=sgd, on_nan="ignore")
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


class Interrupts(Callback):
    """Ctrl-C at the fifth batch."""

    def on_batch_end(self, learn):
        if learn.batch_index == 4:
            raise KeyboardInterrupt


def test_an_epoch_that_was_broken_off_has_its_share_of_the_axis(data):
    learn = Learner(data, mlp())
    learn.fit(1)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, callbacks=Interrupts)
    learn.fit(2)
    recorder = learn.recorder
    assert recorder.borders == [1.0, 1.5]
    assert recorder.epochs[[0, 9, 10, 14, 15, 25]] == pytest.approx([0.0, 0.9, 1.0, 1.4, 1.5, 2.5])
    assert [place for place, _ in recorder.points("valid_loss")] == [1.0, 2.5, 3.5]


def test_a_first_fit_that_was_broken_off_has_a_border(data):
    learn = Learner(data, mlp())
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2, callbacks=Interrupts)
    learn.fit(1)
    assert learn.recorder.borders == [0.5]


def test_a_fit_that_trained_nothing_draws_nothing(data):
    live = LivePlot()
    learn = Learner(data, mlp(), callbacks=[live])
    learn.fit(1)
    figure = live.figure
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, callbacks=[Log({("on_train_begin", 1): ZeroDivisionError()})])
    assert live.figure is figure


def test_a_live_picture_is_drawn_by_the_clock(data, monkeypatch):
    from onecycle import display
    from onecycle.callbacks import live_plot

    drawn = []
    learn = Learner(data, mlp(), live_plot=True)
    monkeypatch.setenv("ONECYCLE_PROGRESS", "notebook")
    monkeypatch.setattr(display, "show", lambda content, handle: drawn.append(content))
    monkeypatch.setattr(live_plot, "time", Clock(learn, 0.1))
    learn.display.bar = False
    learn.fit(3)
    pictures = [content for content in drawn if "image/png" in content]
    # Every five of 30 steps, and once more at the end.
    assert len(pictures) == 7


def test_the_live_picture_of_a_long_run_is_thinned(learn):
    from matplotlib.figure import Figure

    from onecycle import plot

    many = np.linspace(0, 1, 200_000)
    left, right = plot.live(many, many, many, [], many, Figure().subplots())
    assert len(left.get_lines()[0].get_xdata()) <= plot.MANY
    assert len(right.get_lines()[0].get_xdata()) <= plot.MANY


def test_a_logarithmic_scale_needs_losses_above_zero(data):
    learn = Learner(data, mlp(), loss_func=lambda pred, target: -(pred**2).mean() - 1.0)
    learn.fit(1, 1e-4)
    with pytest.raises(ValueError, match="log=True needs losses above 0"):
        learn.recorder.plot_losses(log=True)


def test_a_metric_with_an_underscore_has_its_place_in_the_legend(data):
    def _certainty(pred, target):
        return pred.softmax(1).max(1).values.mean()

    learn = Learner(data, mlp(), metrics=_certainty)
    learn.fit(1)
    (text,) = learn.recorder.plot_metrics().get_legend().get_texts()
    assert text.get_text() == "_certainty"


def test_json_takes_numbers_of_numpy_and_torch(learn, tmp_path):
    learn.fit(1)
    learn.recorder.history[0] |= {"a": np.float32(0.5), "b": torch.tensor(2), "c": (1.0, np.nan)}
    found = json.loads(learn.recorder.write_json(tmp_path / "h.json").read_text())
    assert [found["history"][0][name] for name in "abc"] == [0.5, 2, [1.0, None]]


def test_norms_end_when_clipping_does(data):
    learn = Learner(data, mlp(), clip=1.0)
    learn.fit(1)
    learn.training_step.clip = None
    learn.fit(1)
    assert np.isnan(learn.recorder.grad_norms).tolist() == [False] * 10 + [True] * 10
