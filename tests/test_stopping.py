"""EarlyStopping: when it stops, how it anneals first, and what it leaves."""

import copy
import math
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
import torchmetrics
from helpers import Cancels, Halt, Kept, Told, mlp, plain, same, sgd, split_in_two, weights
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from onecycle import (
    Callback,
    CancelTrain,
    Checkpoint,
    DataLoaders,
    EarlyStopping,
    Learner,
    OneCycleScheduler,
    ParamScheduler,
    SaveBest,
    TorchScheduler,
    accuracy,
    error_rate,
    top_k_accuracy,
)
from onecycle.metrics import MeanMetric
from onecycle.monitor import Monitor
from onecycle.schedules import linear

NAN = math.nan
STEPS = 10  # of an epoch
FALLING = [1.0 - i / 100 for i in range(50)]
WARNS = "middle of a cycle"


def told_learner(data, values, model=None, **options):
    told = Told(values)
    options = {"opt_func": sgd, "callbacks": [told], **options}
    return Learner(data, model or plain(), metrics={"told": told}, **options)


def epochs_of(data, values, *before, epochs=None, **options):
    """Epochs that were trained of those there are values for."""
    learn = told_learner(data, values)
    stopping = EarlyStopping("told", **options)
    learn.fit(epochs or len(values), 0.01, callbacks=[*before, stopping])
    return len(learn.recorder.history)


@pytest.mark.parametrize(
    ("values", "options", "epochs"),
    [
        ([1, 1, 1, 1], {"patience": 1}, 2),
        ([1, 1, 1, 1], {"patience": 2}, 3),
        ([3, 2, 1, 1.5, 1.2, 1.1, 0], {"patience": 3}, 6),
        ([3, 2, 1, 1.5, 1.2, 0.9, 1, 1, 1, 0], {"patience": 3}, 9),
        ([1, 2, 0.5, 2, 0.4, 2], {"patience": 2}, 6),
        ([5, 4, 3, 2, 1], {"patience": 1}, 5),
        ([1, 0.95, 0.9, 0.8, 0.7], {"patience": 2, "min_delta": 0.25}, 3),
        ([1, 0.5, 0, 0, 0], {"patience": 2, "min_delta": 0.5}, 5),
        ([1, 0.875, 0.75, 0.5], {"patience": 2, "min_delta": 0.125}, 4),
        ([1, 2, 3, 4], {"patience": 1, "mode": "max"}, 4),
        ([4, 3, 2, 1], {"patience": 2, "mode": "max"}, 3),
        ([NAN, NAN, NAN, 1], {"patience": 3}, 3),
        ([NAN, 1, NAN, NAN, 0.5], {"patience": 2}, 4),
        ([1, NAN, 0.5, NAN, 0.2], {"patience": 2}, 5),
        ([math.inf, math.inf, 1, 2], {"patience": 2}, 2),
    ],
)
def test_it_stops_after_patience_epochs_without_a_better_one(data, values, options, epochs):
    assert epochs_of(data, values, **options) == epochs


def stops_at(values, patience, min_delta, mode):
    """The same by the definition, written another way."""
    best, waited = None, 0
    for i, value in enumerate(values, start=1):
        gain = math.inf if best is None else (best - value if mode == "min" else value - best)
        best, waited = (value, 0) if gain > min_delta else (best, waited + 1)
        if waited == patience:
            return i
    return len(values)


@given(
    values=st.lists(st.integers(0, 8), min_size=1, max_size=8),
    patience=st.integers(1, 3),
    min_delta=st.integers(0, 2),
    mode=st.sampled_from(["min", "max"]),
)
def test_a_monitor_follows_the_definition(values, patience, min_delta, mode):
    monitor, waited = Monitor("told", mode, min_delta), [0]
    for value in values:
        improved = monitor.better(value)
        monitor.best = value if improved else monitor.best
        waited.append(0 if improved else waited[-1] + 1)
    stop = waited.index(patience) if patience in waited else len(values)
    assert stop == stops_at(values, patience, min_delta, mode)


def test_an_epoch_without_the_value_counts_for_nothing(data):
    assert epochs_of(data, [1, 1, 1, 1, 1, 1], Cancels(1, 3), patience=2) == 5


def test_a_fit_begins_afresh(data):
    learn = told_learner(data, [0, 1, 1, 1])
    stopping = EarlyStopping("told", patience=2)
    learn.fit(4, callbacks=[stopping])
    learn.callbacks[0].values = [5, 4, 6, 6]
    learn.fit(4, callbacks=[stopping])
    assert [len(learn.recorder.history), stopping.monitor.best] == [7, 4]


def test_it_says_when_it_stops(data, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    epochs_of(data, [2, 1, 1, 1, 1], patience=2)
    last, line = capsys.readouterr().out.splitlines()[-2:]
    assert last.split()[0] == "4"
    assert line == "told has not improved for 2 epochs, since epoch 2: stopping"


def test_at_the_end_of_the_plan_there_is_nothing_to_stop(data, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    assert epochs_of(data, [1, 1, 1], patience=2) == 3
    assert "stopping" not in capsys.readouterr().out


# ---- what is followed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        (accuracy, "max"),
        (partial(top_k_accuracy, k=3), "max"),
        (partial(partial(top_k_accuracy, k=3)), "max"),
        (error_rate, "min"),
        (torchmetrics.MeanSquaredError(), "min"),
        (torchmetrics.Accuracy("multiclass", num_classes=10), "max"),
    ],
)
def test_a_metric_says_what_is_better(data, metric, mode):
    learn = Learner(data, plain(), metrics={"it": metric})
    monitor = Monitor("it")
    monitor.begin(learn)
    assert monitor.best == {"max": -math.inf, "min": math.inf}[mode]


@pytest.mark.parametrize("name", ["train_loss", "valid_loss"])
def test_of_losses_less_is_better(data, name):
    monitor = Monitor(name)
    monitor.begin(Learner(data, plain()))
    assert monitor.better(7.0)
    assert monitor.best == math.inf


def correct(pred, target):
    return (pred.argmax(1) == target).float().mean()


@pytest.mark.parametrize("metric", [correct, MeanMetric(lambda pred, target: pred[:, 0])])
def test_a_metric_that_does_not_say_needs_a_mode(data, metric):
    learn = Learner(data, plain(), metrics={"it": metric})
    with pytest.raises(ValueError, match=r'mode must be given .*mode="max".*mode="min"'):
        learn.fit(1, callbacks=[EarlyStopping("it")])
    learn.fit(1, callbacks=[EarlyStopping("it", mode="max")])


class Averaged(Callback):
    """Adds columns as averaging callbacks do."""

    prefix = "ema"
    applied = nullcontext

    def on_validate_end(self, learn):
        learn.scores |= {f"ema_{name}": value + 1.0 for name, value in learn.scores.items()}


@pytest.mark.parametrize("name", ["ema_valid_loss", "ema_accuracy"])
def test_an_averaged_column_goes_by_the_metric_behind_it(data, name):
    learn = Learner(data, plain(), metrics=[accuracy], callbacks=[Averaged])
    stopping = EarlyStopping(name)
    learn.fit(2, 0.01, callbacks=[stopping])
    best = max if name == "ema_accuracy" else min
    assert stopping.monitor.best == best(row[name] for row in learn.recorder.history)


@pytest.mark.parametrize("make", [EarlyStopping, partial(SaveBest, "best.pt")])
def test_a_wrong_monitor_is_told_what_there_is(data, make):
    learn = Learner(data, plain(), metrics=[accuracy], callbacks=[Averaged])
    text = (
        "monitor must be one of 'train_loss', 'valid_loss', 'accuracy', 'ema_valid_loss', "
        "'ema_accuracy', got 'val_loss'; did you mean 'valid_loss'?"
    )
    before = weights(learn)
    with pytest.raises(ValueError, match="monitor") as error:
        learn.fit(1, callbacks=[make(monitor="val_loss")])
    assert str(error.value) == text
    assert same(weights(learn), before)


def test_without_validation_data_there_is_the_training_loss(digit_tensors):
    x, y = digit_tensors
    learn = Learner(DataLoaders.from_tensors(x[:60], y[:60], batch_size=30), plain())
    with pytest.raises(ValueError, match=r"one of 'train_loss', got 'valid_loss'.*no validation"):
        learn.fit(1, callbacks=[EarlyStopping])
    learn.fit(1, callbacks=[EarlyStopping("train_loss")])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"monitor": 3}, TypeError),
        ({"patience": 0}, ValueError),
        ({"patience": 1.5}, TypeError),
        ({"min_delta": -0.1}, ValueError),
        ({"mode": "auto"}, ValueError),
        ({"restore_best": 1}, TypeError),
        ({"on_trigger": "anneal"}, ValueError),
        ({"cooldown": 0.0}, ValueError),
    ],
)
def test_a_bad_argument_is_named(options, error):
    with pytest.raises(error, match=next(iter(options))):
        EarlyStopping(**options)


# ---- schedules -----------------------------------------------------------------------------------

BAD = [1.0] * 30


def one_cycle(learn, epochs, **options):
    learn.fit_one_cycle(epochs, 0.1, **options)


def sets_rate(learn, epochs, callbacks):
    """The same schedule among the callbacks."""
    learn.fit(epochs, 0.1, callbacks=[*callbacks, OneCycleScheduler(0.1)])


def test_stopping_in_a_cycle_warns_once(data):
    learn, stopping = told_learner(data, BAD), EarlyStopping("told")
    with pytest.warns(UserWarning, match=WARNS) as caught:
        one_cycle(learn, 5, callbacks=[stopping])
    one_cycle(learn, 5, callbacks=[stopping])
    assert len(caught) == 1
    assert 'on_trigger="cooldown"' in str(caught[0].message)


@pytest.mark.parametrize(
    "train",
    [
        sets_rate,
        lambda learn, epochs, **k: learn.fit_flat_cos(epochs, 0.1, **k),
        lambda learn, epochs, **k: learn.fit_wsd(epochs, 0.1, **k),
        lambda learn, epochs, **k: learn.fit_clr(epochs, 0.1, **k),
    ],
)
def test_so_it_does_under_any_schedule_that_ends_low(data, train):
    with pytest.warns(UserWarning, match=WARNS):
        train(told_learner(data, BAD), 2, callbacks=[EarlyStopping("told")])


@pytest.mark.parametrize(
    "schedule", [None, linear(0.1, 1.0), TorchScheduler(partial(ExponentialLR, gamma=0.99))]
)
def test_other_schedules_are_no_cycle(data, schedule):
    learn = told_learner(data, BAD)
    learn.fit(2, 0.1, schedule=schedule, callbacks=[EarlyStopping("told")])


def test_a_cooldown_does_not_warn(data):
    stopping = EarlyStopping("told", on_trigger="cooldown")
    one_cycle(told_learner(data, BAD), 2, callbacks=[stopping])


def straight(start, end, steps):
    return [start + (end - start) * k / steps for k in range(1, steps + 1)]


def cooled(data, fit, epochs=20, options=None, **stopping):
    """A run that does not get better from its tenth epoch on."""
    learn = told_learner(data, FALLING[:10] + BAD, **(options or {}))
    settings = {"patience": 2, "on_trigger": "cooldown", **stopping}
    fit(learn, epochs, callbacks=[EarlyStopping("told", **settings)])
    return learn


def test_the_cooldown_is_a_straight_line_to_the_end_of_the_schedule(data):
    learn = cooled(data, one_cycle, cooldown=0.25)
    recorder, steps = learn.recorder, 3 * STEPS  # a quarter of twelve epochs
    assert len(recorder.history) == 15
    before = Learner(data, plain(), opt_func=sgd)
    before.fit_one_cycle(20, 0.1)
    assert np.array_equal(recorder.lrs[: 12 * STEPS], before.recorder.lrs[: 12 * STEPS])
    rates = straight(recorder.lrs[12 * STEPS - 1], 0.1 / 25e4, steps)
    assert recorder.lrs[12 * STEPS :] == pytest.approx(rates, rel=1e-12)
    assert recorder.lrs[-1] == before.recorder.lrs[-1]
    moms = straight(recorder.moms[12 * STEPS - 1], 0.95, steps)
    assert recorder.moms[12 * STEPS :] == pytest.approx(moms, abs=2e-7)
    assert recorder.moms[-1] == 0.95


def test_without_a_schedule_the_rate_goes_to_zero(data):
    learn = cooled(data, lambda learn, epochs, **k: learn.fit(epochs, 0.08, **k))
    assert learn.recorder.lrs[: 12 * STEPS].tolist() == [0.08] * 12 * STEPS
    assert learn.recorder.lrs[12 * STEPS :] == pytest.approx(straight(0.08, 0.0, 20))
    assert learn.recorder.lrs[-1] == 0.0
    assert set(learn.recorder.moms) == {0.9}


def test_so_it_does_under_a_schedule_of_torch(data):
    schedule = TorchScheduler(partial(ExponentialLR, gamma=0.99))
    learn = cooled(data, lambda learn, n, **k: learn.fit(n, 0.1, schedule=schedule, **k))
    assert np.diff(learn.recorder.lrs[12 * STEPS :]) == pytest.approx(
        np.full(19, -0.1 * 0.99**120 / 20)
    )
    assert learn.recorder.lrs[-1] == 0.0


class Groups(Callback):
    """Rates, momenta and decay of every group in every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, learn):
        keys = ("lr", "betas", "weight_decay")
        self.seen.append([[group[key] for key in keys] for group in learn.opt.param_groups])


def test_every_layer_group_has_its_own_line_and_decay_goes_on(data):
    groups = Groups()
    learn = told_learner(
        data, [2, 1, 1, 1, 1, 1, 1], mlp(), opt_func=torch.optim.AdamW, splitter=split_in_two
    )
    given = [groups, ParamScheduler({"wd": linear(0.1, 0.0)})]
    stopping = EarlyStopping("told", 1, on_trigger="cooldown")
    learn.fit_one_cycle(7, slice(0.01, 0.1), callbacks=[*given, stopping])
    assert len(groups.seen) == 4 * STEPS
    cycle = OneCycleScheduler([0.01, 0.1])
    ends = [cycle.lr_schedule(0.01)(1.0), cycle.lr_schedule(0.1)(1.0)]
    last = groups.seen[-1]
    assert [last[0][0], last[-1][0]] == ends
    assert {group[1] for group in last} == {(0.95, 0.999)}
    decay = [step[0][2] for step in groups.seen]
    assert decay == pytest.approx([linear(0.1, 0.0)(i / 69) for i in range(40)])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_are_updates(data, accumulate):
    options = {"accumulate": accumulate}
    learn = cooled(data, one_cycle, options=options)
    per_epoch = math.ceil(STEPS / accumulate)
    lrs = learn.recorder.lrs
    assert len(lrs) == 14 * per_epoch
    rates = straight(lrs[12 * per_epoch - 1], 0.1 / 25e4, 2 * per_epoch)
    assert lrs[12 * per_epoch :] == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize(
    ("epochs", "cooldown", "trained"),
    [(20, 0.01, 13), (20, 0.2, 14), (20, 0.5, 18), (15, 0.2, 14)],
)
def test_it_lasts_a_share_of_the_epochs_so_far(data, epochs, cooldown, trained):
    assert len(cooled(data, one_cycle, epochs, cooldown=cooldown).recorder.history) == trained


@pytest.mark.parametrize("epochs", [12, 13, 14])
def test_a_schedule_that_is_nearly_over_is_let_finish(data, epochs):
    learn = cooled(data, one_cycle, epochs)
    other = Learner(data, plain(), opt_func=sgd)
    other.fit_one_cycle(epochs, 0.1)
    assert same(weights(learn), weights(other))


def test_a_part_of_a_cycle_does_not_end_by_itself(data):
    learn = cooled(data, partial(one_cycle, tot_epochs=40), 13)
    assert learn.recorder.lrs[-1] == pytest.approx(0.1 / 25e4)


class Clock(Callback):
    """A second for every batch."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("onecycle.callbacks.time_budget.time", self)

    def monotonic(self):
        return self.now

    def on_loss_begin(self, learn):
        self.now += 1.0


@pytest.mark.parametrize(("minutes", "epochs"), [(3.5, 15), (2.3, 14), (2.25, 14)])
@pytest.mark.parametrize("limit", [None, 40])
def test_in_a_run_of_minutes_the_cooldown_ends_in_time(data, monkeypatch, minutes, epochs, limit):
    learn = told_learner(data, FALLING[:10] + BAD)
    stopping = EarlyStopping("told", 2, on_trigger="cooldown", cooldown=0.25)
    learn.fit(limit, 0.1, minutes=minutes, callbacks=[Clock(monkeypatch), stopping])
    assert len(learn.recorder.history) == epochs
    assert learn.recorder.lrs[-1] == 0.0


def test_in_the_last_epoch_by_the_clock_no_cooldown_begins(data, monkeypatch):
    learn = told_learner(data, FALLING[:10] + BAD)
    stopping = EarlyStopping("told", 2, on_trigger="cooldown")
    learn.fit(40, 0.1, minutes=2.0, callbacks=[Clock(monkeypatch), stopping])
    assert [len(learn.recorder.history), stopping.cooling] == [12, False]


def test_only_epochs_of_this_fit_count(data):
    learn = told_learner(data, BAD)
    stopping = EarlyStopping("told", 2, on_trigger="cooldown", cooldown=1.0)
    learn.fit_one_cycle(20, 0.1, tot_epochs=30, start_epoch=10, callbacks=[stopping])
    assert len(learn.recorder.history) == 3 + 3


def test_a_cycle_by_the_clock_that_is_nearly_over_is_let_finish(data, monkeypatch):
    learn = told_learner(data, FALLING[:10] + BAD)
    stopping = EarlyStopping("told", 2, on_trigger="cooldown", cooldown=0.25)
    given = [Clock(monkeypatch), stopping]
    learn.fit_one_cycle(minutes=2.3, max_lr=0.1, callbacks=given)
    assert not stopping.cooling
    assert learn.recorder.lrs[-1] == pytest.approx(0.1 / 25e4)


def test_a_plan_that_stays_high_is_annealed_within_it(data):
    learn = cooled(data, lambda learn, epochs, **k: learn.fit(epochs, 0.08, **k), 13)
    assert learn.recorder.lrs[12 * STEPS :] == pytest.approx(straight(0.08, 0.0, STEPS))


@pytest.mark.parametrize(
    ("epochs", "line"),
    [
        (20, "annealing over 2 epochs, then stopping"),
        (13, "the schedule ends in 1 epoch, and is let finish"),
        (14, "the schedule ends in 2 epochs, and is let finish"),
    ],
)
def test_it_says_what_it_does(data, monkeypatch, capsys, epochs, line):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    cooled(data, one_cycle, epochs)
    said = f"told has not improved for 2 epochs, since epoch 10: {line}"
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "improved" in line] == [said]
    assert lines[lines.index(said) - 1].split()[0] == "12"


def test_a_better_epoch_in_the_cooldown_changes_nothing(data):
    learn = told_learner(data, [*[1.0] * 10, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    stopping = EarlyStopping("told", 9, on_trigger="cooldown", restore_best=True, cooldown=0.3)
    kept = Kept()
    one_cycle(learn, 16, callbacks=[kept, stopping])
    assert len(learn.recorder.history) == 13
    assert same(learn.model.state_dict(), kept.states[12])


def test_of_two_only_one_cools_down(data):
    one, other = (EarlyStopping("told", n, on_trigger="cooldown") for n in (9, 10))
    learn = told_learner(data, BAD)
    one_cycle(learn, 20, callbacks=[one, other])
    assert [one.cooling, other.cooling, len(learn.recorder.history)] == [True, False, 12]


def test_hyper_parameters_come_back_after_a_cooldown(data):
    learn = told_learner(data, BAD)
    before = copy.deepcopy(learn.opt.state_dict()["param_groups"])
    one_cycle(learn, 9, callbacks=[EarlyStopping("told", 1, on_trigger="cooldown")])
    assert same(learn.opt.state_dict()["param_groups"], before)


@pytest.mark.parametrize(
    "scheduler",
    [
        OneCycleScheduler(0.1),
        ParamScheduler({"lr": linear(0.1, 0.0)}),
        ParamScheduler({"momentum": linear(0.9, 0.8)}),
    ],
)
def test_a_scheduler_that_would_overwrite_it_is_refused(data, scheduler):
    stopping = EarlyStopping(on_trigger="cooldown")
    learn = Learner(data, plain(), opt_func=sgd)
    with pytest.raises(ValueError, match="must come before EarlyStopping"):
        learn.fit(1, callbacks=[stopping, scheduler])
    learn.fit(1, callbacks=[scheduler, stopping])


# ---- the best epoch ------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A loss with a parameter of its own, and a buffer that no state_dict has."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, pred, target):
        self.calls += 1
        return nn.functional.cross_entropy(pred * self.scale, target)


@pytest.mark.parametrize("train", [one_cycle, lambda learn, n, **k: learn.fit(n, 0.1, **k)])
def test_the_best_weights_come_back_bit_for_bit(data, train):
    learn, kept = told_learner(data, [3, 2, 1, 2, 0.99, 2, 2, 2], mlp()), Kept()
    stopping = EarlyStopping("told", 4, 0.5, restore_best=True, on_trigger="cooldown")
    train(learn, 8, callbacks=[kept, stopping])
    assert same(learn.model.state_dict(), kept.states[4])
    assert not same(kept.states[4], kept.states[-1])


def test_so_do_buffers_outside_of_the_state_and_the_loss(data):
    loss, seen = Scaled(), []

    class Look(Callback):
        def on_epoch_end(self, learn):
            seen.append((loss.calls.item(), loss.scale.item()))

    learn = told_learner(data, [2, 1, 2, 3], loss_func=loss)
    learn.opt.add_param_group({"params": [loss.scale], "layer_group": 0, "decay": False})
    learn.fit(4, 0.1, callbacks=[Look, EarlyStopping("told", 2, restore_best=True)])
    assert (loss.calls.item(), loss.scale.item()) == seen[1]


@pytest.mark.parametrize("stop", [CancelTrain, KeyboardInterrupt, ZeroDivisionError])
def test_however_the_fit_ends(data, stop):
    class Stops(Callback):
        def on_step_end(self, learn):
            if learn.step == 25:
                raise stop

    learn, kept = told_learner(data, [1, 2, 3]), Kept()
    given = [kept, Stops(), EarlyStopping("told", restore_best=True)]
    if stop is CancelTrain:
        learn.fit(3, callbacks=given)
    else:
        with pytest.raises(stop):
            learn.fit(3, callbacks=given)
    assert same(learn.model.state_dict(), kept.states[0])


def test_the_copy_is_let_go(data):
    stopping = EarlyStopping("told", restore_best=True)
    told_learner(data, [1, 2]).fit(2, callbacks=[stopping])
    assert stopping.state_dict()["weights"] == []


def test_only_of_this_fit(data):
    learn, stopping = told_learner(data, [0, 1]), EarlyStopping("told", restore_best=True)
    learn.fit(2, callbacks=[stopping])
    learn.callbacks[0].values = [NAN, NAN]
    kept = Kept()
    learn.fit(2, callbacks=[kept, stopping])
    assert same(learn.model.state_dict(), kept.states[-1])


def test_an_extension_from_the_trunk_judges_its_own_epochs(data, tmp_path):
    learn, kept = told_learner(data, [0.0] * 3), Kept()
    old = [EarlyStopping("told", restore_best=True, on_trigger="cooldown")]
    learn.fit_one_cycle(3, 0.1, callbacks=[*old, SaveBest(tmp_path / "old.pt", "told")])
    learn.callbacks[0].values = [2.0, 2.0, 2.0, 1.0, 2.0, 2.0]
    new = EarlyStopping("told", restore_best=True, on_trigger="cooldown")
    learn.extend(2, "trunk", callbacks=[kept, new])
    assert [new.monitor.best, learn.epoch] == [1.0, 4]
    assert same(learn.model.state_dict(), kept.states[-2])
    learn.extend(1, "trunk", callbacks=[SaveBest(tmp_path / "new.pt", "told")])
    assert (tmp_path / "new.pt").is_file()


def test_a_fit_that_does_not_begin_changes_nothing(data):
    learn, stopping = told_learner(data, [0, 1]), EarlyStopping("told", restore_best=True)
    learn.fit(2, callbacks=[stopping])
    learn.fit(2)
    before = weights(learn)
    with pytest.raises(ValueError, match="monitor"):
        learn.fit(2, callbacks=[SaveBest("best.pt", "typo"), stopping])
    assert same(weights(learn), before)


# ---- resumed -------------------------------------------------------------------------------------


def killable(data, accumulate):
    learn = told_learner(data, [1, 2, 3, 4, 5, 6, 7, 8], mlp(), accumulate=accumulate)
    stopping = EarlyStopping("told", 3, on_trigger="cooldown", restore_best=True, cooldown=0.5)
    return learn, stopping


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("share", [0.1, 0.65, 0.69, 0.7, 0.85, 0.98])
def test_killed_in_the_cooldown_it_ends_the_same(data, tmp_path, share, accumulate):
    whole, stopping = killable(data, accumulate)
    torch.manual_seed(4)
    one_cycle(whole, 8, callbacks=[stopping])
    assert len(whole.recorder.history) == 6

    learn, stopping = killable(data, accumulate)
    torch.manual_seed(4)
    saver = Checkpoint(tmp_path / "run.pt", every_steps=1)
    halt = Halt(int(share * len(whole.recorder.lrs)))
    with pytest.raises(KeyboardInterrupt):
        one_cycle(learn, 8, callbacks=[stopping, halt, saver])

    learn, stopping = killable(data, accumulate)
    torch.manual_seed(99)
    learn.resume(tmp_path / "run.pt", callbacks=[stopping, Halt(0)])
    assert same(weights(learn), weights(whole))
    assert np.array_equal(learn.recorder.lrs, whole.recorder.lrs)
    assert np.array_equal(learn.recorder.moms, whole.recorder.moms)
    assert np.array_equal(learn.recorder.losses, whole.recorder.losses)


def test_what_it_was_about_to_say_is_said_after_a_resume(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    stopping = partial(EarlyStopping, "told", 1, on_trigger="cooldown")
    with pytest.raises(KeyboardInterrupt):
        one_cycle(
            told_learner(data, BAD),
            5,
            callbacks=[Halt(2 * STEPS + 1), stopping(), Checkpoint(tmp_path / "run.pt")],
        )
    capsys.readouterr()
    told_learner(data, BAD).resume(tmp_path / "run.pt", callbacks=[Halt(0), stopping()])
    assert "annealing over 1 epoch" in capsys.readouterr().out


def test_scores_are_those_of_the_weights_that_are_kept(data):
    learn = Learner(data, mlp())
    learn.fit(3, 0.5, callbacks=[EarlyStopping(patience=9, restore_best=True)])
    assert learn.validate()["valid_loss"] == learn.scores["valid_loss"]
