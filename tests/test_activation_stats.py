"""ActivationStats: what modules put out, against the same figures computed by hand."""

import copy
import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from helpers import Log, everything, mlp, plain, same
from matplotlib import pyplot as plt
from torch import nn

from onecycle import Callback, CancelBatch, CancelTrain, Learner
from onecycle.callbacks.activation_stats import ActivationStats


@pytest.fixture
def trained(data):
    """Records of the steps 0, 4, 8 of ten, of all four layers that are no dropout."""
    stats = ActivationStats(["0", "1", "2", "4"])
    Learner(data, mlp(), callbacks=[stats]).fit(1)
    return stats


class Outputs(Callback):
    """Keeps what one module put out in every training batch, as numpy arrays."""

    def __init__(self, name):
        self.name = name
        self.seen = []

    def on_train_begin(self, learn):
        module = learn.model.get_submodule(self.name)
        self.handle = module.register_forward_hook(self.keep)

    def keep(self, module, inputs, output):
        if module.training:
            self.seen.append(output.detach().double().numpy().copy())

    def on_train_end(self, learn):
        self.handle.remove()


def test_figures_equal_those_computed_by_hand(data):
    stats, outputs = ActivationStats(every=3), Outputs("4")
    Learner(data, mlp(), callbacks=[stats, outputs]).fit(1)
    seen = outputs.seen[::3]
    assert stats.steps.tolist() == [0, 3, 6, 9]
    assert stats.means[:, -1] == pytest.approx([x.mean() for x in seen], rel=1e-5)
    assert stats.stds[:, -1] == pytest.approx([x.std() for x in seen], rel=1e-5)
    shares = [(np.abs(x) <= 0.05).mean() for x in seen]
    assert stats.near_zero[:, -1] == pytest.approx(shares, rel=1e-6)
    counts = [np.histogram(np.abs(x), 40, (0, 10))[0] for x in seen]
    np.testing.assert_array_equal(stats.histograms[-1], counts)


def test_shapes_and_names(trained):
    assert trained.layers == ["0", "1", "2", "4"]
    assert trained.means.shape == trained.stds.shape == trained.near_zero.shape == (3, 4)
    assert trained.histograms.shape == (4, 3, 40)
    assert trained.histograms.sum(2).tolist() == [[480] * 3] * 3 + [[300] * 3]


def test_what_is_beyond_the_range_is_in_the_last_bin_and_nan_in_none():
    stats = ActivationStats("", bins=4, top=2.0)
    batch = (torch.tensor([[0.0, -0.6, 1.0, 1.99, 2.0, -300.0, np.inf, np.nan]]), torch.ones(1, 8))

    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.weight

    Learner(([batch], None), Scale(), callbacks=[stats], device="cpu", on_nan="ignore").fit(1)
    assert stats.histograms.tolist() == [[[1, 1, 1, 4]]]
    assert np.isnan(stats.means).all()
    assert stats.near_zero.item() == 1 / 8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_is_bit_identical(data, precision):
    learners = []
    for callbacks in ([], [ActivationStats(lambda _: True, every=1)]):
        model = nn.Sequential(mlp(), nn.ReLU(inplace=True), nn.Dropout(0.1))
        torch.manual_seed(3)
        learn = Learner(data, model, precision=precision, device="cpu")
        learn.fit_one_cycle(2, 0.02, callbacks=callbacks)
        learners.append(everything(learn))
    for part in ("tensors", "grads", "opt", "torch", "numpy", "python"):
        assert same(learners[0][part], learners[1][part])


def test_half_precision_outputs_are_taken_in_single(data):
    stats, outputs = ActivationStats("4"), Outputs("4")
    Learner(data, mlp(), callbacks=[stats, outputs], precision="bf16").fit(1)
    seen = outputs.seen[::4]
    assert stats.means[:, 0] == pytest.approx([x.mean() for x in seen], rel=1e-4)
    assert stats.stds[:, 0] == pytest.approx([x.std() for x in seen], rel=1e-5)


@pytest.mark.parametrize("event", ["on_backward_end", "on_batch_end"])
def test_validation_is_not_recorded_wherever_it_runs(data, event):
    validates = Callback()
    setattr(validates, event, lambda learn: learn.validate())
    stats, alone = ActivationStats(every=1), ActivationStats(every=1)
    Learner(data, mlp(), callbacks=[stats, validates]).fit(2)
    Learner(data, mlp(), callbacks=[alone]).fit(2)
    assert stats.state_dict() == alone.state_dict()


def test_validation_after_a_cancelled_batch_runs_without_hooks(data):
    seen = []

    class Look(Callback):
        def on_validate_begin(self, learn):
            seen.append(hooks(learn.model))

    cancel = Log({("on_batch_begin", 10): CancelBatch()})
    Learner(data, mlp(), callbacks=[ActivationStats(every=1), cancel, Look]).fit(1)
    assert seen == [0]


def test_several_fits_go_on_in_one_record(data):
    stats = ActivationStats()
    for learn in (Learner(data, mlp()), Learner(data, mlp())):
        learn.fit(1, callbacks=[stats])
    assert stats.steps.tolist() == [0, 4, 8, 12, 16]


def test_the_layers_of_another_model_are_added(data):
    stats = ActivationStats(every=10)
    Learner(data, mlp()).fit(1, callbacks=[stats])
    Learner(data, plain()).fit(1, callbacks=[stats])
    assert stats.layers == ["0", "1", "4", ""]
    assert np.isnan(stats.means).tolist() == [[False] * 3 + [True], [True] * 3 + [False]]


def test_steps_count_updates_and_a_record_is_of_the_batch_that_steps(data):
    stats, outputs = ActivationStats("4", every=2), Outputs("4")
    Learner(data, mlp(), callbacks=[stats, outputs], accumulate=2).fit(1)
    assert stats.steps.tolist() == [0, 2, 4]
    means = [x.mean() for x in outputs.seen[1::4]]
    assert stats.means[:, 0] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("event", ["on_batch_begin", "on_loss_begin", "on_backward_end"])
def test_a_cancelled_batch_leaves_no_record(data, event):
    stats, outputs = ActivationStats("4", every=1), Outputs("4")
    cancel = Log({(event, 1): CancelBatch()})
    Learner(data, mlp(), callbacks=[stats, cancel, outputs]).fit(1)
    assert stats.steps.tolist() == list(range(9))
    assert stats.means[:, 0] == pytest.approx([x.mean() for x in outputs.seen[-9:]], rel=1e-5)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt(), CancelTrain()])
@pytest.mark.parametrize("event", ["on_train_begin", "on_batch_begin", "on_loss_begin"])
def test_no_hook_and_no_module_is_left(data, event, error):
    stats = ActivationStats(every=1)
    learn = Learner(data, mlp(), callbacks=[stats, Log({(event, 1): error})])
    with suppress(ZeroDivisionError, KeyboardInterrupt):
        learn.fit(1)
    assert hooks(learn.model) == 0
    assert (stats._watched, stats._handles, stats._batch) == ({}, [], {})


def test_an_error_in_the_forward_pass_leaves_no_hook(data):
    class Fails(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    learn = Learner(data, nn.Sequential(plain(), Fails()), callbacks=[ActivationStats])
    with pytest.raises(ZeroDivisionError):
        learn.fit(1)
    assert hooks(learn.model) == 0


def test_steps_that_are_not_due_run_without_hooks(data):
    seen = []

    class Look(Callback):
        def on_batch_begin(self, learn):
            seen.append(hooks(learn.model))

    Learner(data, mlp(), callbacks=[ActivationStats(every=5), Look]).fit(1)
    assert seen == [3, 0, 0, 0, 0, 3, 0, 0, 0, 0]


def test_numbers_can_be_looked_at_in_the_middle(data):
    seen = []

    class Look(Callback):
        def on_step_end(self, learn):
            seen.append(len(stats.means))

    stats = ActivationStats()
    Learner(data, mlp(), callbacks=[stats, Look]).fit(1)
    assert seen == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_nothing_is_read_before_the_end_of_the_fit(data):
    unread = []

    class Look(Callback):
        def on_epoch_end(self, learn):
            unread.append((len(stats._unread), len(stats._rows)))

    stats = ActivationStats("0")
    Learner(data, mlp(), callbacks=[stats, Look]).fit(2)
    assert unread == [(3, 0), (5, 0)]
    assert (len(stats._unread), len(stats._rows)) == (0, 5)


@pytest.mark.parametrize(
    ("pick", "layers"),
    [
        (None, ["0", "1", "4"]),
        (lambda module: isinstance(module, nn.ReLU), ["2"]),
        ("2", ["2"]),
        (["4", "0"], ["0", "4"]),
        (iter(["4"]), ["4"]),
    ],
)
def test_modules_are_picked_by_function_and_by_name(data, pick, layers):
    stats = ActivationStats(pick)
    for _ in range(2):
        Learner(data, mlp()).fit(1, callbacks=[stats])
    assert stats.layers == layers


@pytest.mark.parametrize("several", [True, False])
def test_modules_can_be_given_themselves(data, several):
    model = mlp()
    stats = ActivationStats([model[2]] if several else model[2])
    Learner(data, model, callbacks=[stats]).fit(1)
    assert stats.layers == ["2"]


class Odd(nn.Module):
    """Has layers that put out tuples, dicts and integers, and one that runs twice."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 10, batch_first=True)
        self.named = Named()
        self.count = Count()
        self.head = nn.Linear(10, 10)

    def forward(self, x):
        y = self.named(self.rnn(x.reshape(-1, 8, 8))[0][:, -1])["out"]
        return self.head(self.head(y)) * self.count(x)


class Named(nn.Module):
    def forward(self, x):
        return {"none": None, "out": x * 2, "second": x}


class Count(nn.Module):
    def forward(self, x):
        return torch.tensor(len(x))


def test_of_a_tuple_or_dict_the_first_tensor_counts_and_integers_do_not(data):
    model = Odd()
    stats = ActivationStats(lambda module: module is not model, every=1)
    Learner(data, model, callbacks=[stats]).fit(1)
    assert stats.layers == ["rnn", "named", "head"]
    assert stats.histograms[:, 0].sum(1).tolist() == [30 * 8 * 10, 30 * 10, 30 * 10]


def test_the_last_call_of_a_step_is_the_one_recorded(data):
    layer = nn.Linear(64, 64)
    twice = nn.Sequential(layer, layer, nn.Linear(64, 10))
    stats, outputs = ActivationStats("1", every=1), Outputs("1")
    Learner(data, twice, callbacks=[stats, outputs]).fit(1)
    calls = outputs.seen[1::2]
    assert stats.means[:, 0] == pytest.approx([x.mean() for x in calls], rel=1e-4)


def test_the_state_is_plain_and_goes_on(trained, data):
    other = ActivationStats(["0", "1", "2", "4"])
    state = json.loads(json.dumps(trained.state_dict()))
    assert state == trained.state_dict()
    other.load_state_dict(state)
    for stats in (trained, other):
        Learner(data, mlp(), callbacks=[stats]).fit(1)
    assert other.steps.tolist() == [0, 4, 8, 12, 16]
    assert other.state_dict() == trained.state_dict()


def test_a_state_with_other_bins_is_refused(trained):
    with pytest.raises(ValueError, match=r"bins=40, top=10, this one bins=20, top=10"):
        ActivationStats(bins=20).load_state_dict(trained.state_dict())


def test_it_can_be_copied(trained):
    assert copy.deepcopy(trained).state_dict() == trained.state_dict()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"modules": 3}, TypeError, "modules must be a function, names or modules, got 3"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"bins": 2.5}, TypeError, "bins must be an integer"),
        ({"top": 0}, ValueError, "top must be finite and above 0"),
    ],
)
def test_wrong_arguments_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        ActivationStats(**options)


@pytest.mark.parametrize(
    ("modules", "text"),
    [
        (["body.1"], r"modules: the model has no 'body.1', the nearest names are '1'"),
        ([nn.ReLU()], r"modules: the model has no such ReLU"),
        (lambda _: False, "modules picks no module"),
    ],
)
def test_modules_that_are_not_there_are_refused_before_training(data, modules, text):
    learn = Learner(data, mlp(), callbacks=[ActivationStats(modules)])
    with pytest.raises(ValueError, match=text):
        learn.fit(1)
    assert learn.step == 0


def test_a_deterministic_run_stays_one(data):
    torch.use_deterministic_algorithms(True)
    try:
        Learner(data, mlp(), callbacks=[ActivationStats]).fit(1)
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layer", ["2", 2, -2, np.int64(2)])
def test_plot_layer_stats_draws_the_record(trained, layer):
    panels = trained.plot_layer_stats(layer)
    drawn = [panel.get_lines()[0] for panel in panels]
    for line, values in zip(drawn, (trained.means, trained.stds, trained.near_zero), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), trained.steps)
        np.testing.assert_array_equal(line.get_ydata(), values[:, 2])
    titles = ["mean", "standard deviation", "share near zero"]
    assert [panel.get_title() for panel in panels] == titles
    assert (panels[0].get_xlabel(), panels[0].get_ylabel()) == ("step", "layer 2")


def test_color_dim_draws_the_record(trained):
    ax = trained.color_dim("4")
    (image,) = ax.get_images()
    counts = trained.histograms[-1].T
    bins = 1 + np.nonzero(counts)[0].max()
    assert 1 < bins < 40
    np.testing.assert_array_equal(image.get_array(), np.log1p(counts[:bins]))
    assert (image.origin, list(image.get_extent())) == ("lower", [-2, 10, 0, 10 * bins / 40])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "|activation|")


def test_plots_use_the_axes_they_are_given_and_show_nothing(trained, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a window was shown"))
    figure, (row, (last, *_)) = plt.subplots(2, 3)
    assert trained.plot_layer_stats(0, ax=row) is row
    assert trained.color_dim(0, ax=last) is last
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


def test_one_axes_is_not_a_row_of_three(trained):
    with pytest.raises(TypeError, match="ax must be a row of 3 axes"):
        trained.plot_layer_stats(0, ax=plt.subplots()[1])


def test_one_record_can_be_drawn(data):
    stats = ActivationStats(every=100)
    Learner(data, mlp(), callbacks=[stats]).fit(1)
    stats.color_dim(0).figure.canvas.draw()


@pytest.mark.parametrize("name", ["plot_layer_stats", "color_dim"])
@pytest.mark.parametrize("layer", ["3", 4, -5, 0.5, None])
def test_an_unknown_layer_is_answered_with_the_known(trained, name, layer):
    with pytest.raises(ValueError, match=r"layer must be one of '0', '1', '2', '4'"):
        getattr(trained, name)(layer)


@pytest.mark.parametrize("name", ["plot_layer_stats", "color_dim"])
def test_nothing_recorded_is_said(name):
    with pytest.raises(ValueError, match="nothing was recorded"):
        getattr(ActivationStats(), name)(0)


def test_an_empty_record_has_empty_arrays():
    stats = ActivationStats()
    assert stats.means.shape == (0, 0)
    assert stats.histograms.shape == (0, 0, 40)


def test_a_class_of_modules_is_a_test(data):
    stats = ActivationStats(nn.ReLU)
    Learner(data, mlp()).fit(1, callbacks=stats)
    assert stats.layers == ["2"]


def test_blocks_change_nothing(data, monkeypatch):
    one, other = ActivationStats(every=1), ActivationStats(every=1)
    for stats, block in ((one, 4096), (other, 3)):
        monkeypatch.setattr("onecycle.callbacks.activation_stats.BLOCK", block)
        torch.manual_seed(0)
        Learner(data, mlp()).fit(1, callbacks=stats)
    assert one.state_dict() == other.state_dict()
