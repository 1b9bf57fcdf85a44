"""learn.epoch_find: one flat run, read out and annealed, that leaves no trace."""

import copy
import math
import pickle
import random

import numpy as np
import pytest
import torch
from helpers import (
    LOADERS,
    OPTIMIZERS,
    Log,
    everything,
    make,
    mlp,
    plain,
    same,
    sgd,
    split_in_two,
    stepped,
    weights,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from onecycle import (
    EMA,
    CancelTrain,
    DataLoaders,
    Learner,
    ParamScheduler,
    ScheduleFree,
    accuracy,
    generators,
    rmse,
)
from onecycle.callback import Callback
from onecycle.callbacks.progress import ProgressBar
from onecycle.display import Log as LogSurface
from onecycle.epochs_finder import COOLDOWN, SHORTEST, doublings
from onecycle.schedules import constant, join, linear
from onecycle.trainer import Trainer

STEPS = 10  # in an epoch of `make` and of the fixtures
LR = 1e-2
WAYS = {
    "all": {"branches": "all"},
    "none": {"branches": "none"},
    "seeds": {"n_seeds": 2},
    "double": {"method": "double"},
    "double seeds": {"method": "double", "n_seeds": 2},
}


class Watch:
    """Sees every forward pass, and raises at one; no snapshot puts back what it has seen."""

    def __init__(self, model):
        self.passes, self.at, self.error = [], None, None
        model.register_forward_pre_hook(self)

    def __call__(self, model, inputs):
        self.passes.append(model.training)
        if len(self.passes) == self.at:
            raise self.error

    @property
    def trained(self):
        return sum(self.passes)


def begins(epochs, steps=STEPS):
    """The step at which the anneal begins."""
    total = epochs * steps
    return max(1, min(round((1 - COOLDOWN) * total), total - SHORTEST))


def trunk_lr(lr, last, epochs=None, down=None):
    """What multiplies the peak in a run that is as the trunk for `last` epochs."""
    rise = min(0.05 * last, 0.3) / (epochs or last)
    parts, at = [linear(lr / 50, lr / 2), constant(lr / 2)], [rise]
    if down is not None:
        parts, at = [*parts, linear(lr / 2, 0.0)], [rise, down]
    return ParamScheduler({"lr": join(*parts, at=at)})


def annealed(found, epochs):
    row = next(row for row in found.table if row["epochs"] == epochs)
    return row["annealed_loss"]


def rows(learn):
    return [{**row, "seconds": 0} for row in learn.recorder.history]


# ---- no trace --------------------------------------------------------------------------------


def all_of(learn):
    own = learn.plan, id(learn.scheduler), learn.budget, learn.batch, learn.loss
    groups = [{k: v for k, v in g.items() if k != "params"} for g in learn.opt.param_groups]
    counters = learn.n_epochs, learn.stop_epoch, learn.batch_index, learn.batches_per_epoch
    generator = getattr(learn.data.train, "generator", None)
    state = None if generator is None else generator.get_state()
    calls = getattr(getattr(learn.data.train, "dataset", None), "calls", None)
    hidden = getattr(learn.model, "calls", None), getattr(learn.model, "last", None)
    return [everything(learn), copy.deepcopy([own, groups, counters, state, calls, hidden])]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("loader", LOADERS)
def test_it_leaves_no_trace(digit_tensors, tmp_path, monkeypatch, way, loader):
    monkeypatch.chdir(tmp_path)
    log, opt = Log(), "sgd" if way == "all" else "adamw"
    learn = make(digit_tensors, opt, loader, callbacks=[log], metrics=[accuracy])
    learn.fit_one_cycle(1, LR, keep_trunk=True)
    before, trunk, seen = all_of(learn), learn.trunk, len(log.events)
    learn.epoch_find(2, LR, **WAYS[way])
    assert same(before, all_of(learn))
    assert learn.trunk is trunk
    assert len(log.events) == seen
    assert list(tmp_path.iterdir()) == []


def places(passes):
    """Early in the trunk, in its first read-out and late; in an anneal and what it is read out."""
    first, last = passes.index(False), len(passes) - passes[::-1].index(True)
    return {"early": 3, "read": first + 1, "late": last // 2, "anneal": last, "end": len(passes)}


@pytest.mark.parametrize("way", ["all", "double"])
@pytest.mark.parametrize("loader", LOADERS)
def test_it_leaves_no_trace_wherever_it_is_broken_off(digit_tensors, way, loader):
    error = KeyboardInterrupt if way == "all" else ZeroDivisionError
    learn = make(digit_tensors, "sgd", loader)
    learn.fit_one_cycle(1, LR)
    before, watch = all_of(learn), Watch(learn.model)
    learn.epoch_find(2, LR, **WAYS[way])
    for place in places(watch.passes).values():
        watch.passes, watch.at, watch.error = [], place, error()
        with pytest.raises(error):
            learn.epoch_find(2, LR, **WAYS[way])
        assert same(before, all_of(learn))


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("loader", LOADERS)
def test_training_after_it_is_training_without_it(digit_tensors, opt, loader):
    runs = []
    for find in (True, False):
        learn = make(digit_tensors, opt, loader)
        learn.fit_one_cycle(1, LR)
        if find:
            watch = Watch(learn.model)
            learn.epoch_find(2, LR, "all")
            for place in places(watch.passes).values():
                watch.passes, watch.at, watch.error = [], place, KeyboardInterrupt()
                with pytest.raises(KeyboardInterrupt):
                    learn.epoch_find(2, LR, "all")
            watch.at = None
        learn.fit_one_cycle(2, LR)
        runs.append([weights(learn), learn.recorder.losses, learn.recorder.lrs, rows(learn)])
    assert same(*runs)


def test_gradients_and_modes_come_back(learn):
    learn.model.eval()
    gradient = torch.ones_like(learn.model[0].weight)
    learn.model[0].weight.grad = gradient
    learn.epoch_find(2, LR)
    assert learn.model[0].weight.grad is gradient
    assert not learn.model.training


def test_a_result_is_the_same_every_time(digit_tensors):
    learn = make(digit_tensors, metrics=[accuracy])
    one, other = (learn.epoch_find(2, LR, "all", n_seeds=2) for _ in range(2))
    for name in ("loss", "accuracy"):
        assert np.array_equal(one.averaged[name].values, other.averaged[name].values)
        assert np.array_equal(one.annealed[name].values, other.annealed[name].values)


def test_not_in_the_middle_of_a_fit(learn):
    class Asks(Callback):
        def on_step_end(self, learn):
            learn.epoch_find(1, LR)

    with pytest.raises(RuntimeError, match="a fit is running already"):
        learn.fit(1, LR, callbacks=[Asks])


# ---- cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("branches", ["auto", "all", "none"])
@pytest.mark.parametrize("last", [1, 2, 5, 8])
def test_the_cost_is_what_was_trained(learn, branches, last):
    watch = Watch(learn.model)
    found = learn.epoch_find(last, LR, branches)
    assert watch.trained == pytest.approx(found.cost * last * STEPS)
    anneals = sum(b * STEPS - begins(b) for b in doublings(last))
    assert last * STEPS <= watch.trained <= last * STEPS + anneals
    if branches == "all":
        assert watch.trained == last * STEPS + anneals
    if branches == "none":
        assert found.cost == 1.0


@settings(max_examples=300)
@given(st.integers(1, 300), st.integers(1, 500))
def test_all_anneals_cost_a_quarter(last, steps):
    budgets = doublings(last)
    anneals = sum(b * steps - begins(b, steps) for b in budgets if b * steps > 3)
    # Every budget is rounded to a step, and has SHORTEST at least.
    assert anneals <= 0.25 * last * steps + SHORTEST * len(budgets)


def test_seeds_cost_as_many_times(learn):
    watch = Watch(learn.model)
    found = learn.epoch_find(2, LR, "all", n_seeds=3)
    assert found.cost == pytest.approx(3 * (20 + 3 + 3) / 20)
    assert watch.trained == pytest.approx(found.cost * 2 * STEPS)


def test_auto_anneals_the_knee_and_those_beside_it(data):
    learn = Learner(data, plain(), opt_func=sgd)
    found = learn.epoch_find(16, 0.3)
    assert found.knee not in (None, 16)
    k = found.averaged["loss"].budgets.index(found.knee)
    assert found.annealed["loss"].budgets == found.averaged["loss"].budgets[max(0, k - 1) : k + 2]


def test_auto_without_a_knee_anneals_the_last_two(learn):
    found = learn.epoch_find(4, 1e-3)
    assert found.knee is None
    assert found.annealed["loss"].budgets == (2, 4)


@pytest.mark.parametrize(
    ("last", "budgets"), [(1, [1]), (2, [1, 2]), (3, [1, 3]), (12, [1, 3, 6, 12])]
)
def test_budgets(last, budgets):
    assert doublings(last) == budgets


# ---- the trunk -------------------------------------------------------------------------------


def test_the_trunk_rises_and_is_flat(data):
    learn = Learner(data, mlp(), opt_func=sgd, splitter=split_in_two)
    lrs = stepped(learn)
    learn.epoch_find(4, [0.01, 0.1], "none")
    got = np.array(lrs)
    assert got.shape[0] == 40
    assert got[:, -1].min() == pytest.approx(0.05 / 25)
    assert got[0].max() == pytest.approx(0.05 / 25)
    # 5 % of 4 epochs are two steps.
    assert got[1, -1] == pytest.approx((0.05 / 25 + 0.05) / 2)
    assert np.all(got[2:].max(1) == 0.05)
    assert np.all(got[2:].min(1) == 0.005)


@pytest.mark.parametrize(("last", "rise"), [(1, 0), (2, 1), (4, 2), (6, 3), (16, 3)])
def test_the_rise_is_short(learn, last, rise):
    lrs = stepped(learn)
    learn.epoch_find(last, LR, "none")
    assert sum(lr[0] < LR / 2 for lr in lrs) == rise


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("branches", ["all", "none"])
def test_momentum_and_weight_decay_are_left_alone(digit_tensors, opt, branches):
    learn = make(digit_tensors, opt, "in_memory")
    own = {name: learn.opt.param_groups[0].get(name) for name in ("momentum", "betas")}
    seen = {name: stepped(learn, name) for name in own if own[name] is not None}
    decay = stepped(learn, "weight_decay")
    learn.epoch_find(2, LR, branches)
    assert {name: set(map(str, values)) for name, values in seen.items()} == {
        name: {str([own[name]] * len(learn.opt.param_groups))} for name in seen
    }
    assert set(map(str, decay)) == {str([g["weight_decay"] for g in learn.opt.param_groups])}


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("loader", LOADERS)
def test_averaged_values_are_those_of_a_plain_fit_with_ema(digit_tensors, opt, loader):
    found = make(digit_tensors, opt, loader).epoch_find(5, LR, "none")
    learn = make(digit_tensors, opt, loader)
    ema = EMA(buffers="copy")
    learn.fit(5, callbacks=[trunk_lr(LR, 5), ema])
    losses = [learn.recorder.history[b - 1]["ema_valid_loss"] for b in (1, 2, 5)]
    assert found.averaged["loss"].means == pytest.approx(losses, rel=1e-6)
    with ema.applied(learn):
        scores = learn.validate()
    assert found.averaged["loss"].means[-1] == pytest.approx(scores["valid_loss"], rel=1e-6)
    assert found.averaged["loss"].values.shape == (1, 3, 100)


@pytest.mark.parametrize("budget", [1, 2])
def test_and_of_one_that_ends_there(digit_tensors, budget):
    found = make(digit_tensors, loader="torch").epoch_find(5, LR, "none")
    learn, ema = make(digit_tensors, loader="torch"), EMA(buffers="copy")
    learn.fit(budget, callbacks=[trunk_lr(LR, 5, budget), ema])
    k = found.averaged["loss"].budgets.index(budget)
    assert found.averaged["loss"].means[k] == pytest.approx(
        learn.recorder.history[-1]["ema_valid_loss"], rel=1e-6
    )


@pytest.mark.parametrize("method", ["trunk", "double"])
def test_orders_are_those_of_the_next_fit(digit_tensors, method):
    learn, other = (make(digit_tensors, "sgd", "in_memory", model=plain()) for _ in range(2))
    learn.fit(3, LR)
    other.fit(3, LR)
    found = learn.epoch_find(2, LR, "none", method=method)
    if method == "trunk":
        other.fit(2, callbacks=[trunk_lr(LR, 2), EMA(buffers="copy")])
    else:
        other.fit_one_cycle(2, LR)
    last = other.recorder.history[-1]
    expected = last.get("ema_valid_loss", last["valid_loss"])
    assert found.averaged["loss"].means[-1] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("budget", [1, 2, 5])
def test_annealed_values_are_those_of_a_plain_fit_of_that_shape(digit_tensors, loader, budget):
    found = make(digit_tensors, "sgd", loader).epoch_find(5, LR, "all")
    learn = make(digit_tensors, "sgd", loader)
    down = begins(budget) / (budget * STEPS)
    learn.fit(budget, callbacks=[trunk_lr(LR, 5, budget, down)])
    got = annealed(found, budget)
    assert got == pytest.approx(learn.recorder.history[-1]["valid_loss"], rel=1e-6)


def test_metrics_are_read_out_too(digit_tensors):
    found = make(digit_tensors, metrics=[accuracy]).epoch_find(2, LR, "all")
    learn = make(digit_tensors, metrics=[accuracy])
    learn.fit(2, callbacks=[trunk_lr(LR, 2), EMA(buffers="copy")])
    assert found.table[-1]["averaged_accuracy"] == pytest.approx(
        learn.recorder.history[-1]["ema_accuracy"]
    )
    assert set(found.annealed) == {"loss", "accuracy"}


# ---- finish ----------------------------------------------------------------------------------


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("loader", LOADERS)
def test_finish_ends_where_the_table_says(digit_tensors, opt, loader):
    learn = make(digit_tensors, opt, loader)
    learn.fit_one_cycle(1, LR)
    found = learn.epoch_find(4, LR, "all")
    for budget in (4, 1, 2):
        found.finish(budget)
        got = learn.validate()["valid_loss"]
        assert got == pytest.approx(annealed(found, budget), rel=1e-6)
        assert learn.recorder.history[-1]["valid_loss"] == got


@pytest.mark.parametrize("loader", LOADERS)
def test_finish_is_the_same_every_time(digit_tensors, loader):
    learn = make(digit_tensors, "adamw", loader)
    found = learn.epoch_find(2, LR)
    ends = []
    for further in (0, 0, 1):
        if further:
            learn.fit_one_cycle(further, LR)
        found.finish(2)
        ends.append(weights(learn))
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_finish_is_the_run_without_a_find(digit_tensors):
    """Bit for bit: what was kept lacks nothing."""
    learn = make(digit_tensors)
    learn.epoch_find(4, LR, "none").finish(4)
    other = make(digit_tensors)
    other.fit(4, callbacks=[trunk_lr(LR, 4, 4, begins(4) / 40)])
    assert same(weights(learn), weights(other))


@pytest.mark.parametrize(("budget", "cooldown"), [(1, 3), (2, 3), (4, 5), (8, 10)])
def test_finish_lowers_the_rate_in_a_line_to_0(data, budget, cooldown):
    learn = Learner(data, mlp(), splitter=split_in_two)
    found = learn.epoch_find(8, [0.01, 0.1], "none")
    lrs = stepped(learn)
    found.finish(budget)
    line = np.linspace(1.0, 0.0, cooldown)
    assert learn.recorder.lrs == pytest.approx(0.05 * line)
    assert np.array(lrs).min(1) == pytest.approx(0.005 * line)
    assert len(learn.recorder.history) == budget - begins(budget) // STEPS
    assert learn.epoch + 1 == learn.n_epochs == budget


def test_finish_takes_the_chosen_budget(learn):
    found = learn.epoch_find(4, LR)
    found.finish()
    assert learn.n_epochs == found.epochs


def test_finish_runs_the_callbacks_and_goes_on(learn):
    log = Log()
    learn.callbacks.append(log)
    found = learn.epoch_find(2, LR)
    found.finish(2)
    assert log.events.count("on_step_end") == 3
    learn.extend(1)
    assert len(learn.recorder.history) == 2


def test_an_average_begins_with_finish(learn):
    """What the trunk has averaged is no part of it."""
    ema = EMA()
    learn.callbacks.append(ema)
    learn.epoch_find(2, LR).finish(2)
    assert ema.steps == 3


def test_what_finish_uses_does_not_change_in_training(learn):
    found = learn.epoch_find(2, LR, "all")
    expected = annealed(found, 2)
    learn.fit(1, 1.0)
    found.finish(2)
    learn.fit(1, 1.0)
    found.finish(2)
    assert learn.validate()["valid_loss"] == pytest.approx(expected, rel=1e-6)


def test_hyper_parameters_are_what_they_were_after_finish(learn):
    before = copy.deepcopy([{**g, "params": 0} for g in learn.opt.param_groups])
    learn.epoch_find(2, LR).finish()
    assert same(before, [{**g, "params": 0} for g in learn.opt.param_groups])


def test_finish_refuses_another_batch_size(digit_tensors):
    learn = make(digit_tensors, loader="in_memory")
    found = learn.epoch_find(2, LR)
    learn.data = learn.data.again(batch_size=60)
    with pytest.raises(ValueError, match=r"finish goes on as the run .*, but batch_size: "):
        found.finish()


def test_a_copy_keeps_numbers(learn):
    found = pickle.loads(pickle.dumps(learn.epoch_find(1, LR)))
    with pytest.raises(ValueError, match=r"call fit_one_cycle\(1, 0.01\)"):
        found.finish()


# ---- seeds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["trunk", "double"])
@pytest.mark.parametrize("loader", [*LOADERS, "stream"])
def test_seeds_see_other_orders(digit_tensors, method, loader):
    learn = make(digit_tensors, "sgd", "in_memory", model=plain())
    if loader == "stream":
        learn.data = DataLoaders(learn.data.train, learn.data.valid, steps_per_epoch=4)
    elif loader != "in_memory":
        learn = make(digit_tensors, "sgd", loader, model=plain())
    found = learn.epoch_find(2, LR, n_seeds=3, method=method)
    values = found.averaged["loss"].values
    assert values.shape == (3, 2, 100)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (values[a] != values[b]).mean() > 0.9


def test_seeds_see_other_dropout(digit_tensors):
    x, y = digit_tensors
    batches = [(x[:100], y[:100])] * 4
    learn = Learner((batches, batches), nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.5)))
    means = learn.epoch_find(1, LR, n_seeds=2).averaged["loss"].seed_means
    assert means[0] != means[1]


def test_every_generator_is_seeded_anew():
    held = [torch.Generator(), random.Random(1), np.random.default_rng(1), np.random.RandomState(1)]

    def draw():
        own = held[0].initial_seed(), *(each.random() for each in held[1:])
        return [torch.rand(1).item(), np.random.rand(), random.random(), *own]

    draws = []
    for seed in (1, 1, 2):
        generators.reseed(held, seed)
        draws.append(draw())
    assert draws[0] == draws[1]
    assert not set(draws[0]) & set(draws[2])


@pytest.mark.parametrize("generator", [None, torch.Generator()])
def test_seeds_draw_another_order_from_a_generator(digit_tensors, generator):
    x, y = digit_tensors
    train = DataLoader(TensorDataset(x[:300], y[:300]), 30, shuffle=True, generator=generator)
    learn = Learner((train, [(x[300:400], y[300:400])]), plain())
    means = learn.epoch_find(1, LR, n_seeds=3).averaged["loss"].seed_means[:, 0]
    assert len(set(means)) == 3


@pytest.mark.parametrize("loader", LOADERS)
def test_the_first_seed_is_that_of_one(digit_tensors, loader):
    learn = make(digit_tensors, "sgd", loader)
    one, two = (learn.epoch_find(2, LR, "all", n_seeds=n) for n in (1, 2))
    for which in ("averaged", "annealed"):
        values = getattr(two, which)["loss"].values
        assert np.array_equal(getattr(one, which)["loss"].values[0], values[0])
        assert not np.array_equal(values[1], values[0])


def test_annealed_seeds_are_told_apart(digit_tensors):
    found = make(digit_tensors).epoch_find(2, LR, "all", n_seeds=2)
    assert found.annealed["loss"].values.shape == (2, 2, 100)
    assert found.table[-1]["annealed_loss"] == pytest.approx(
        found.annealed["loss"].seed_means[:, -1].mean()
    )


# ---- complete cycles -------------------------------------------------------------------------


@pytest.mark.parametrize("opt", OPTIMIZERS)
@pytest.mark.parametrize("loader", LOADERS)
def test_doubling_trains_complete_cycles(digit_tensors, opt, loader):
    found = make(digit_tensors, opt, loader).epoch_find(4, LR, method="double")
    assert found.kind == "cycle"
    for budget, mean in zip(found.judged.budgets, found.judged.means, strict=True):
        learn = make(digit_tensors, opt, loader)
        learn.fit_one_cycle(budget, LR)
        assert mean == pytest.approx(learn.recorder.history[-1]["valid_loss"], rel=1e-6)


def test_doubling_stops_when_one_is_no_better(data):
    learn = Learner(data, plain(), opt_func=sgd)
    watch = Watch(learn.model)
    found = learn.epoch_find(64, 1.0, method="double")
    budgets, means = found.judged.budgets, found.judged.means
    assert len(budgets) < 7
    assert means[-1] >= means[-2] == means.min()
    assert found.cost == pytest.approx(sum(budgets) / budgets[-1])
    assert watch.trained == sum(budgets) * STEPS
    with pytest.raises(ValueError, match=rf"call fit_one_cycle\({found.epochs}, 1.0\)"):
        found.finish()


def test_doubling_goes_by_the_metric(data):
    learn = Learner(data, mlp(), metrics=[accuracy])
    found = learn.epoch_find(2, LR, metric="accuracy", method="double")
    assert found.by == "accuracy"
    assert found.judged.budgets == (1, 2)
    assert "cycle_accuracy" in found.table[0]


def test_doubling_without_momentum(data):
    found = Learner(data, plain(), opt_func=torch.optim.SGD).epoch_find(1, LR, method="double")
    assert found.epochs == 1


# ---- arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"max_epochs": 0}, ValueError, "max_epochs must be at least 1"),
        ({"max_epochs": 2.0}, TypeError, "max_epochs must be an integer"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"lr": "fast"}, TypeError, "lr"),
        ({"lr": [0.1, 0.2, 0.3]}, ValueError, "lr"),
        ({"branches": "some"}, ValueError, "branches must be one of 'auto', 'all', 'none'"),
        ({"metric": "val_loss"}, ValueError, "metric: .*; there are loss, accuracy$"),
        ({"metric": "rmse"}, ValueError, "metric: 'rmse' is no "),
        ({"metric": "function"}, ValueError, "metric: 'function' is no "),
        ({"metric": accuracy}, ValueError, "metric: "),
        ({"target": "low"}, TypeError, "target must be a number"),
        ({"target": math.nan}, ValueError, "target"),
        ({"n_seeds": 0}, ValueError, "n_seeds must be at least 1"),
        ({"method": "grid"}, ValueError, "method must be one of 'trunk', 'double'"),
        ({"show_plot": 1}, TypeError, "show_plot must be True or False"),
    ],
)
@pytest.mark.parametrize("lr", [LR, None])
def test_errors_name_the_argument_before_anything_is_trained(data, options, error, said, lr):
    metrics = {"accuracy": accuracy, "rmse": rmse, "function": lambda p, t: accuracy(p, t)}
    learn = Learner(data, mlp(), metrics=metrics)
    watch, before = Watch(learn.model), everything(learn)
    with pytest.raises(error, match=said):
        learn.epoch_find(**{"max_epochs": 2, "lr": lr, **options})
    assert watch.passes == []
    assert learn.recorder.lr_find is None
    assert same(before, everything(learn))


def test_without_validation_data(data):
    learn = Learner((data.train, None), mlp())
    with pytest.raises(ValueError, match="epoch_find reads out validation data, and this"):
        learn.epoch_find(2)
    assert learn.recorder.lr_find is None


def test_metrics_that_are_no_mean_are_left_out(data):
    metrics = {"accuracy": accuracy, "function": lambda p, t: accuracy(p, t)}
    found = Learner(data, mlp(), metrics=metrics).epoch_find(1, LR)
    assert list(found.averaged) == ["loss", "accuracy"]


def test_a_metric_decides(data):
    learn = Learner(data, mlp(), metrics=[accuracy])
    found = learn.epoch_find(4, LR, metric="accuracy", target=0.3)
    assert found.judged is found.averaged["accuracy"]
    assert found.judged.higher_is_better
    assert found.judged.means[found.judged.budgets.index(found.epochs)] >= 0.3
    assert "accuracy 0.3" in found.verdict


def test_a_loss_known_for_batches_only(data):
    learn = Learner(data, mlp(), lambda p, t: cross_entropy(p, t), metrics=[accuracy])
    ema = EMA(buffers="copy")
    found = learn.epoch_find(2, LR, "all", metric="accuracy", n_seeds=2)
    assert found.averaged["loss"].values.shape == (2, 2, 4)
    learn.fit(2, callbacks=[trunk_lr(LR, 2), ema])
    row = learn.recorder.history[-1]
    assert found.averaged["accuracy"].seed_means[0, -1] == pytest.approx(row["ema_accuracy"])
    assert found.averaged["loss"].seed_means[0, -1] == pytest.approx(row["ema_valid_loss"])


# ---- the learning rate -----------------------------------------------------------------------


def test_the_rate_is_that_of_the_last_lr_find(learn):
    lr = learn.lr_find()
    assert learn.epoch_find(1).lr == float(lr)
    assert learn.recorder.lr_find is lr


def test_without_one_there_is_a_new_one(learn):
    before = everything(learn)
    found = learn.epoch_find(1)
    assert found.lr == float(learn.recorder.lr_find)
    assert same(before, everything(learn))


def test_one_without_signal_is_held_again(data):
    learn = Learner(data, mlp())
    learn.lr_find(end_lr=2e-7)
    assert math.isnan(learn.recorder.lr_find)
    assert learn.epoch_find(1).lr == float(learn.recorder.lr_find)


def test_without_any_signal(digit_tensors):
    x, y = digit_tensors
    torch.manual_seed(0)
    valid = [(x[:50], y[:50])]
    learn = Learner((valid, valid), Deaf())
    with pytest.raises(ValueError, match="lr: lr_find gave no learning rate"):
        learn.epoch_find(1)
    with pytest.raises(ValueError, match="lr: lr_find gave no learning rate"):
        learn.epoch_find(1, learn.recorder.lr_find)


class Deaf(nn.Module):
    """Does not learn."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return torch.zeros(len(x), 10) + 0.0 * self.weight


def test_a_slice_spreads_over_the_groups(data):
    learn = Learner(data, mlp(), splitter=split_in_two)
    lrs = stepped(learn)
    found = learn.epoch_find(1, slice(0.01, 0.1))
    assert found.lr == 0.1
    assert {min(lr) for lr in lrs[:STEPS]} == {0.005}
    assert {max(lr) for lr in lrs[:STEPS]} == {0.05}


# ---- data, precision, optimizers -------------------------------------------------------------


class Plain:
    """An iterable that cannot be brought to a place."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def in_plain(digit_tensors, model=None):
    x, y = digit_tensors
    batches = list(zip(x[:300].split(30), y[:300].split(30), strict=True))
    return Learner((Plain(batches), [(x[300:400], y[300:400])]), model or mlp())


def test_a_plain_iterable_is_annealed_from_the_ends_of_epochs(digit_tensors):
    learn = in_plain(digit_tensors)
    watch, before = Watch(learn.model), everything(learn)
    found = learn.epoch_find(8, LR, "all")
    assert same(before, everything(learn))
    assert found.annealed["loss"].budgets == (8,)
    assert watch.trained == 90 == found.cost * 80
    found.finish(8)
    assert learn.validate()["valid_loss"] == pytest.approx(annealed(found, 8), rel=1e-6)
    assert learn.recorder.lrs == pytest.approx(LR / 2 * np.linspace(1, 0, 10))
    for budget in (1, 2, 4):
        with pytest.raises(ValueError, match=rf"epochs: of {budget} nothing .* call fit_one_cycle"):
            found.finish(budget)


@pytest.mark.parametrize("branches", ["auto", "all", "none"])
def test_a_plain_iterable_without_any_place(digit_tensors, branches):
    found = in_plain(digit_tensors).epoch_find(2, LR, branches, n_seeds=2)
    assert (found.cost, found.annealed) == (2.0, {})
    assert "averaged_loss" in found.table[0]


def test_a_plain_iterable_is_doubled(digit_tensors):
    found = in_plain(digit_tensors).epoch_find(2, LR, method="double")
    learn = in_plain(digit_tensors)
    learn.fit_one_cycle(found.judged.budgets[-1], LR)
    assert found.judged.means[-1] == pytest.approx(learn.validate()["valid_loss"], rel=1e-6)


@pytest.mark.parametrize("steps", [4, 15])
def test_a_stream_goes_on_where_it_was(digit_tensors, steps):
    learn = make(digit_tensors, "sgd", "in_memory")
    learn.data = DataLoaders(learn.data.train, learn.data.valid, steps_per_epoch=steps)
    runs = []
    for find in (True, False):
        own = make(digit_tensors, "sgd", "in_memory")
        own.data = DataLoaders(own.data.train, own.data.valid, steps_per_epoch=steps)
        own.fit(1, LR)
        if find:
            own.epoch_find(2, LR, n_seeds=2)
        own.fit(1, LR)
        runs.append(weights(own))
    assert same(*runs)
    found = learn.epoch_find(2, LR, "all")
    found.finish(2)
    assert learn.validate()["valid_loss"] == pytest.approx(annealed(found, 2), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("last", [1, 2, 4, 8])
def test_epochs_of_few_steps(digit_tensors, steps, last):
    x, y = digit_tensors
    batches = list(zip(x[: 30 * steps].split(30), y[: 30 * steps].split(30), strict=True))
    learn = Learner((batches, [(x[300:400], y[300:400])]), plain())
    found = learn.epoch_find(last, LR, "all")
    short = [b for b in doublings(last) if b * steps < 3]
    assert [row["epochs"] for row in found.table if math.isnan(row["annealed_loss"])] == short
    for budget in set(doublings(last)) - set(short):
        found.finish(budget)
        cooldown = budget * steps - begins(budget, steps)
        assert learn.recorder.lrs[-cooldown:] == pytest.approx(LR / 2 * np.linspace(1, 0, cooldown))
        assert learn.validate()["valid_loss"] == pytest.approx(annealed(found, budget), rel=1e-6)


@pytest.mark.parametrize("accumulate", [2, 4, 20])
def test_accumulation(digit_tensors, accumulate):
    options = {"accumulate": accumulate}
    learn = make(digit_tensors, "sgd", **options)
    watch = Watch(learn.model)
    found = learn.epoch_find(4, LR, "all")
    assert watch.trained == pytest.approx(found.cost * 4 * STEPS)
    steps = math.ceil(STEPS / accumulate)
    for budget in (b for b in (1, 2, 4) if b * steps >= 3):
        found.finish(budget)
        assert learn.validate()["valid_loss"] == pytest.approx(annealed(found, budget), rel=1e-6)
        other = make(digit_tensors, "sgd", **options)
        down = begins(budget, steps) / (budget * steps)
        other.fit(budget, callbacks=[trunk_lr(LR, 4, budget, down)])
        assert same(weights(learn), weights(other))


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"clip": 0.1}, {"train_bn": False}])
def test_ways_to_step(digit_tensors, options):
    learn = make(digit_tensors, loader="in_memory", **options)
    before = everything(learn)
    found = learn.epoch_find(2, LR, "all")
    assert same(before, everything(learn))
    found.finish(2)
    other = make(digit_tensors, loader="in_memory", **options)
    other.fit(2, callbacks=[trunk_lr(LR, 2, 2, begins(2) / 20)])
    assert same(weights(learn), weights(other))
    assert learn.validate()["valid_loss"] == pytest.approx(annealed(found, 2), rel=1e-5)


def spoilt(digit_tensors, on_nan):
    """Ten batches, of which two are not finite."""
    x, y = digit_tensors
    x = x[:300].clone()
    x[::150] = float("nan")
    batches = list(zip(x.split(30), y[:300].split(30), strict=True))
    valid = [(digit_tensors[0][300:400], y[300:400])]
    return Learner((batches, valid), plain(), on_nan=on_nan)


def test_batches_that_are_skipped(digit_tensors):
    learn = spoilt(digit_tensors, "skip")
    before = everything(learn)
    with pytest.warns(UserWarning, match="batch skipped"):
        found = learn.epoch_find(2, LR, "all", n_seeds=2)
    assert same(before, everything(learn))
    assert found.annealed["loss"].budgets == (1, 2)
    assert np.isfinite(found.averaged["loss"].means).all()


def test_a_run_that_diverges_raises_and_leaves_no_trace(digit_tensors):
    learn = spoilt(digit_tensors, "raise")
    before = everything(learn)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        learn.epoch_find(2, LR)
    assert same(before, everything(learn))


def test_a_run_that_diverges_is_told_where_it_goes_on(digit_tensors):
    learn = spoilt(digit_tensors, "ignore")
    with pytest.raises(ValueError, match="loss is finite at no budget: train at a lower lr"):
        learn.epoch_find(2, LR)


@pytest.mark.parametrize("method", ["trunk", "double"])
def test_schedule_free_optimizers(data, method):
    runs = []
    for find in (True, False):
        torch.manual_seed(0)
        learn = Learner(data, mlp(), opt_func=AdamWScheduleFree, callbacks=[ScheduleFree])
        learn.fit(1, LR)
        before = everything(learn)
        if find:
            assert math.isfinite(learn.epoch_find(2, LR, "all", method=method).judged.means[0])
            assert same(before, everything(learn))
        learn.fit(1, LR)
        runs.append(weights(learn))
    assert same(*runs)


def test_schedule_free_optimizers_are_read_out_at_their_average(data):
    learn = Learner(data, plain(), opt_func=AdamWScheduleFree, callbacks=[ScheduleFree])
    found = learn.epoch_find(1, LR, method="double")
    with pytest.warns(UserWarning, match="this schedule anneals"):
        learn.fit_one_cycle(1, LR)
    assert found.judged.means[0] == pytest.approx(learn.validate()["valid_loss"], rel=1e-6)


def test_schedule_free_optimizers_finish(data):
    learn = Learner(data, mlp(), opt_func=AdamWScheduleFree, callbacks=[ScheduleFree])
    found = learn.epoch_find(2, LR, "all")
    with pytest.warns(UserWarning, match="this schedule anneals"):
        found.finish(2)
    assert math.isfinite(learn.validate()["valid_loss"])


def test_workers(digit_tensors):
    x, y = digit_tensors
    torch.manual_seed(0)
    train = DataLoader(TensorDataset(x[:120], y[:120]), 30, shuffle=True, num_workers=1)
    learn = Learner((train, [(x[300:400], y[300:400])]), plain())
    found = learn.epoch_find(1, LR)
    found.finish()
    assert learn.validate()["valid_loss"] == pytest.approx(annealed(found, 1), rel=1e-6)


# ---- display ---------------------------------------------------------------------------------


@pytest.mark.parametrize("surface", ["log", "terminal"])
def test_a_line_in_a_log(learn, monkeypatch, capsys, surface):
    monkeypatch.setenv("ONECYCLE_PROGRESS", surface)
    found = learn.epoch_find(1, LR)
    assert capsys.readouterr().out == f"epoch_find: {found!r}\n"
    assert plt.get_fignums() == []


@pytest.mark.parametrize("surface", ["log", "terminal"])
@pytest.mark.parametrize("method", ["trunk", "double"])
def test_nothing_where_nothing_is_to_be_shown(learn, monkeypatch, capsys, surface, method):
    monkeypatch.setenv("ONECYCLE_PROGRESS", surface)
    monkeypatch.setattr(LogSurface, "refresh", 0.0)
    with learn.no_logging():
        learn.epoch_find(1, LR, method=method)
    assert capsys.readouterr() == ("", "")


def test_bars_say_what_runs_and_how_far_it_is(learn, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    monkeypatch.setattr(LogSurface, "refresh", 0.0)
    learn.epoch_find(4, LR, "all")
    lines = [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    anneals = [f"anneal to {b}: {i}/{n}" for b, n in ((1, 3), (2, 3), (4, 5)) for i in count(n)]
    assert lines == [*(f"epoch_find: {i}/40" for i in count(40)), *anneals]


def test_bars_of_complete_cycles(learn, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    monkeypatch.setattr(LogSurface, "refresh", 0.0)
    learn.epoch_find(1, LR, method="double")
    lines = [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert lines == [f"1cycle of 1: {i}/10" for i in count(10)]


def count(n):
    return range(1, n + 1)


@pytest.mark.parametrize(("show_plot", "logging", "figures"), [(1, 1, 1), (0, 1, 0), (1, 0, 0)])
def test_a_picture_in_a_notebook(learn, monkeypatch, capsys, show_plot, logging, figures):
    monkeypatch.setattr("onecycle.plot.in_notebook", lambda: True)
    learn.display = ProgressBar(bar=False, table=bool(logging))
    learn.epoch_find(1, LR, show_plot=bool(show_plot))
    assert len(plt.get_fignums()) == figures
    assert capsys.readouterr().out == ""


def test_the_minutes_are_those_of_training(learn, monkeypatch):
    monkeypatch.setattr("time.perf_counter", lambda: 6.0 * learn.step)
    assert [row["minutes"] for row in learn.epoch_find(4, LR).table] == [1.0, 2.0, 4.0]


# ---- Trainer.aside ---------------------------------------------------------------------------


def test_aside_goes_on_within_the_block(learn):
    before = everything(learn)
    with learn.aside() as run:
        run(range(1), 1, [])
        one = weights(learn)
        run(range(1), 1, [])
        assert not same(one, weights(learn))
        assert learn.step == STEPS
    assert same(before, everything(learn))
    assert isinstance(learn, Trainer)


def test_aside_absorbs_a_signal_as_a_fit_does(learn):
    class Stop(Callback):
        def on_step_end(self, learn):
            raise CancelTrain

    before = everything(learn)
    with learn.aside() as run:
        run(range(1), 1, [Stop()])
        assert learn.step == 1
    assert same(before, everything(learn))


def test_the_loss_has_two_names(digit_tensors):
    learn = make(digit_tensors, "sgd", "in_memory", model=plain())
    assert learn.epoch_find(1, LR, "none", metric="valid_loss").by == "loss"
