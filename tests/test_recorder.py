"""The Recorder and its pictures: what is drawn is what was recorded."""

import numpy as np
import pytest
from helpers import Log, mlp, same, sgd
from matplotlib import pyplot as plt

from onecycle import Callback, CancelEpoch, Learner, Recorder, accuracy, checkpoint
from onecycle.callbacks import recorder as module
from onecycle.smoothing import centred_mean, local_lines


@pytest.fixture
def trained(data):
    """Two fits of two and one epochs, 10 steps each."""
    learn = Learner(data, mlp(), metrics=[accuracy])
    learn.fit_one_cycle(2, 0.02)
    learn.fit(1, 1e-3)
    return learn


def test_one_number_for_every_step_and_one_row_for_every_epoch(trained):
    recorder = trained.recorder
    lengths = {
        len(x) for x in (recorder.losses, recorder.smooth_losses, recorder.lrs, recorder.moms)
    }
    assert (lengths, len(recorder.history)) == ({30}, 3)
    assert recorder.fits == [(0, 0), (20, 2)]
    columns = ["epoch", "train_loss", "valid_loss", "accuracy", "lr", "seconds"]
    assert [list(row) for row in recorder.history] == [columns] * 3
    assert [row["epoch"] for row in recorder.history] == [1, 2, 3]
    assert [row["lr"] for row in recorder.history] == recorder.lrs[[9, 19, 29]].tolist()


@pytest.mark.parametrize("name", ["losses", "lrs", "moms", "grad_norms", "epochs"])
def test_each_series_can_be_read_at_every_step(data, name):
    lengths = []

    class Read(Callback):
        def on_step_end(self, learn):
            lengths.append(len(getattr(learn.recorder, name)))

    Learner(data, mlp(), clip=1.0, callbacks=[Read()]).fit(1)
    assert lengths == list(range(1, 11))


def test_train_loss_is_the_mean_over_samples(digit_tensors):
    x, y = digit_tensors
    batches = [(x[:50], y[:50]), (x[50:60], y[50:60])]
    learn = Learner((batches, None), mlp())
    learn.fit(1)
    first, second = learn.recorder.losses
    expected = (50 * first + 10 * second) / 60
    assert learn.recorder.history[0]["train_loss"] == pytest.approx(expected, rel=1e-12)


def test_accumulated_steps_record_the_mean_of_their_samples(digit_tensors):
    x, y = digit_tensors
    losses = []

    class Watch(Callback):
        def on_backward_begin(self, learn):
            losses.append(learn.loss.item())

    batches = [(x[:50], y[:50]), (x[50:60], y[50:60]), (x[60:80], y[60:80])]
    learn = Learner((batches, None), mlp(), accumulate=2, callbacks=[Watch])
    learn.fit(1)
    expected = [(50 * losses[0] + 10 * losses[1]) / 60, losses[2]]
    assert learn.recorder.losses == pytest.approx(expected)
    overall = (60 * expected[0] + 20 * expected[1]) / 80
    assert learn.recorder.history[0]["train_loss"] == pytest.approx(overall)


def test_losses_are_read_in_blocks(data, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    one, two = Learner(data, mlp()), Learner(data, mlp())
    one.fit(1)
    monkeypatch.setattr(module, "BLOCK", 1000)
    two.fit(1)
    assert len(one.recorder.losses) == len(two.recorder.losses) == 10


def test_losses_can_be_looked_at_in_the_middle(data):
    seen = []

    class Look(Callback):
        def on_batch_end(self, learn):
            seen.append(len(learn.recorder.losses))

    Learner(data, mlp(), callbacks=[Look]).fit(1)
    assert seen == list(range(1, 11))


def test_a_cancelled_epoch_has_a_row_without_validation(data):
    learn = Learner(data, mlp(), callbacks=[Log({("on_batch_begin", 4): CancelEpoch()})])
    learn.fit(2)
    first, second = learn.recorder.history
    assert "valid_loss" not in first
    assert "valid_loss" in second
    assert first["train_loss"] == pytest.approx(np.mean(learn.recorder.losses[:3]))


def test_an_epoch_without_a_step_has_no_loss(data):
    learn = Learner(data, mlp(), callbacks=[Log({("on_epoch_begin", 2): CancelEpoch()})])
    learn.fit(3)
    assert np.isnan(learn.recorder.history[1]["train_loss"])
    assert learn.recorder.epochs[[0, 9, 10, 19]] == pytest.approx([0.0, 0.9, 2.0, 2.9])


def test_the_state_is_plain_and_complete(trained):
    state = checkpoint.plain(trained.recorder.state_dict(), "recorder")
    other = Recorder()
    other.load_state_dict(state)
    assert same(other.state_dict(), trained.recorder.state_dict())
    assert other.epochs.tolist() == trained.recorder.epochs.tolist()


def test_momentum_is_nan_where_there_is_none(data):
    import torch

    learn = Learner(data, mlp(), opt_func=torch.optim.Adagrad)
    learn.fit(1)
    assert np.isnan(learn.recorder.moms).all()


def drawn(ax):
    return [tuple(line.get_xydata().T.tolist()) for line in ax.get_lines()]


def test_plot_lr_draws_rate_and_momentum_over_epochs(trained):
    recorder = trained.recorder
    left, right = recorder.plot_lr(show_moms=True)
    np.testing.assert_array_equal(left.get_lines()[0].get_ydata(), recorder.lrs)
    np.testing.assert_array_equal(right.get_lines()[0].get_ydata(), recorder.moms)
    assert left.get_lines()[0].get_xdata()[[0, 10, 20]].tolist() == [0.0, 1.0, 2.0]
    assert (left.get_xlabel(), left.get_ylabel()) == ("epoch", "learning rate")


def test_plot_losses_draws_raw_smooth_and_validation(trained):
    recorder = trained.recorder
    raw, smooth, valid = recorder.plot_losses().get_lines()
    np.testing.assert_array_equal(raw.get_ydata(), recorder.losses)
    np.testing.assert_array_equal(smooth.get_ydata(), recorder.smooth_losses)
    assert valid.get_xydata().tolist() == [[r["epoch"], r["valid_loss"]] for r in recorder.history]


def test_plot_metrics_draws_each(trained):
    (line,) = trained.recorder.plot_metrics().get_lines()
    assert line.get_label() == "accuracy"
    assert line.get_ydata().tolist() == [row["accuracy"] for row in trained.recorder.history]


def test_plot_draws_the_sweep_and_marks_the_suggestion(trained):
    found = trained.lr_find()
    ax = trained.recorder.plot()
    assert ax.get_xscale() == "log"
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), found.lrs)
    marked = [line for line in ax.get_lines() if line.get_label().startswith("suggestion")]
    assert marked[0].get_xdata()[0] == float(found)


@pytest.mark.parametrize("name", ["plot", "plot_lr", "plot_losses", "plot_metrics"])
def test_plots_use_the_axes_they_are_given_and_show_nothing(trained, name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a window was shown"))
    trained.lr_find()
    figure, ax = plt.subplots()
    assert getattr(trained.recorder, name)(ax=ax) is ax
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


def test_plot_lr_takes_a_pair_of_axes(trained):
    figure, pair = plt.subplots(1, 2)
    assert trained.recorder.plot_lr(show_moms=True, ax=pair) == tuple(pair)
    assert len(figure.axes) == 2


def test_plots_survive_losses_that_are_not_finite(data):
    learn = Learner(data, mlp(), opt_func=sgd, on_nan="ignore")
    learn.fit(1, 1e30)
    assert not np.isfinite(learn.recorder.losses).all()
    learn.recorder.plot_losses().figure.canvas.draw()
    learn.recorder.history[0]["valid_loss"] = float("inf")
    learn.recorder.plot_losses().figure.canvas.draw()


def test_smoothing_has_no_lag():
    x = np.linspace(-1, 1, 101)
    assert local_lines(x, x**2, width=0.1).argmin() == 50
    assert centred_mean(x**2, reach=5).argmin() == 50


def test_smoothing_leaves_out_what_is_not_finite():
    values = np.array([1.0, np.nan, 3.0, np.inf, 5.0])
    assert centred_mean(values, reach=1).tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("show_moms", [True, False])
def test_plot_lr_refuses_another_number_of_axes(trained, show_moms):
    with pytest.raises(TypeError, match="ax must be"):
        trained.recorder.plot_lr(show_moms, ax=plt.figure().subplots(1, 3))
