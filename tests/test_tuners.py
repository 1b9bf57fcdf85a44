"""OptunaReport and when a rung ends: real studies, real schedules."""

import signal
import sys
from functools import partial

import optuna
import pytest
from helpers import Log, Told, plain, sgd
from optuna.trial import TrialState
from torch import nn
from torch.optim.lr_scheduler import StepLR

from onecycle import (
    Callback,
    CancelTrain,
    Checkpoint,
    Learner,
    OptunaReport,
    RayReport,
    SaveBest,
    TorchScheduler,
)
from onecycle.rungs import Rungs
from onecycle.schedules import one_cycle, repeat


class Ends(Callback):
    """Notes the epochs after which a rung ended, and 0 for one that ended with the fit."""

    def __init__(self, when="rung"):
        self.rungs, self.found = Rungs(when), []

    def on_train_begin(self, learn):
        self.rungs.begin()

    def on_epoch_end(self, learn):
        if self.rungs.after_epoch(learn):
            self.found.append(learn.epoch + 1)

    def on_train_end(self, learn):
        if self.rungs.after_fit(learn):
            self.found.append(0)


def mlp_in_two():
    return nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 10))


def of_torch():
    return TorchScheduler(partial(StepLR, step_size=1))


@pytest.fixture
def learn(data):
    return Learner(data, plain(), opt_func=sgd)


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=5.0))


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        (lambda learn, **own: learn.fit(3, 0.1, **own), [1, 2, 3]),
        (lambda learn, **own: learn.fit_one_cycle(3, 0.1, **own), [0]),
        (lambda learn, **own: learn.fit_one_cycle(1, 0.1, **own), [0]),
        (lambda learn, **own: learn.fit_one_cycle(2, 0.1, tot_epochs=3, **own), []),
        (lambda learn, **own: learn.fit_one_cycle(1, 0.1, start_epoch=2, **own), [0]),
        (lambda learn, **own: learn.fit_one_cycle(None, 0.1, minutes=0.001, **own), [0]),
        (lambda learn, **own: learn.fit_wsd(3, 0.1, **own), [0]),
        (lambda learn, **own: learn.fit_sgdr(3, 1, 0.1, **own), [1, 3, 0]),
        (lambda learn, **own: learn.fit_clr(4, 0.1, cycle_len=2, div_factor=9.0, **own), [2, 0]),
        (lambda learn, **own: learn.fit(4, 0.1, schedule=repeat(one_cycle(), 2), **own), [2, 0]),
        (lambda learn, **own: learn.fine_tune(1, 0.1, **own), [0, 0]),
        (lambda learn, **own: learn.fit(2, 0.1, schedule=of_torch(), **own), [0]),
    ],
)
def test_a_rung_ends_where_a_cycle_is_complete(data, fit, expected):
    learn = Learner(data, mlp_in_two(), splitter=list, opt_func=sgd)
    ends = Ends()
    fit(learn, callbacks=[ends])
    assert ends.found == expected


def test_every_epoch_where_that_is_asked_for(learn):
    ends = Ends("epoch")
    learn.fit_one_cycle(2, 0.1, callbacks=[ends])
    assert ends.found == [1, 2]


class Raises(Callback):
    def __init__(self, what):
        self.what = what

    def on_epoch_end(self, learn):
        raise self.what


def test_a_fit_that_is_cancelled_has_a_result_and_one_that_fails_has_none(learn):
    ends = Ends()
    learn.fit_one_cycle(3, 0.1, callbacks=[ends, Raises(CancelTrain)])
    assert ends.found == [0]
    with pytest.raises(ZeroDivisionError):
        learn.fit_one_cycle(3, 0.1, callbacks=[ends, Raises(ZeroDivisionError)])
    assert ends.found == [0]


def test_a_study_gets_what_complete_cycles_end_with(data, study):
    def objective(trial):
        lr = trial.suggest_float("lr", 1e-3, 1e-1, log=True)
        for epochs in (1, 3):
            learn = Learner(data, plain(), opt_func=sgd)
            learn.fit_one_cycle(epochs, lr, callbacks=[OptunaReport(trial)])
            ends.append(learn.recorder.history[-1]["valid_loss"])
        return ends[-1]

    ends = []
    study.optimize(objective, n_trials=2)
    told = [trial.intermediate_values for trial in study.trials]
    assert told == [{1: ends[0], 3: ends[1]}, {1: ends[2], 3: ends[3]}]


@pytest.mark.parametrize("fit", ["fit", "fit_one_cycle"])
def test_a_pruned_trial_ends_the_fit_and_leaves_the_learner_whole(data, study, tmp_path, fit):
    told = Told([9.0, 9.0])
    learn = Learner(data, plain(), opt_func=sgd, metrics={"told": told})
    before, log = learn.opt.param_groups[0]["lr"], Log()

    def objective(trial):
        reporting = [told, OptunaReport(trial, "told"), SaveBest(tmp_path / "best.pt"), log]
        getattr(learn, fit)(2, 0.1, callbacks=reporting)
        raise AssertionError("not reached")

    study.optimize(objective, n_trials=1)
    assert study.trials[0].state == TrialState.PRUNED
    assert study.trials[0].intermediate_values == {{"fit": 1, "fit_one_cycle": 2}[fit]: 9.0}
    assert log.events[-2:] == ["on_epoch_end", "on_train_end"]
    assert learn.opt.param_groups[0]["lr"] == before
    assert not learn.loop.running
    learn.fit(1, 0.1)


def test_a_good_trial_is_left_alone(data, study):
    learn = Learner(data, plain(), opt_func=sgd)
    learn.fit(2, 0.1, callbacks=[OptunaReport(study.ask(), "train_loss")])
    reported = study.trials[0].intermediate_values
    assert reported == {row["epoch"]: row["train_loss"] for row in learn.recorder.history}


def test_a_process_without_a_trial_trains_as_ever(learn):
    learn.fit(1, 0.1, callbacks=[OptunaReport(None)])
    assert len(learn.recorder.history) == 1


class Stops(Callback):
    def on_epoch_end(self, learn):
        if learn.epoch == 1:
            signal.raise_signal(signal.SIGINT)


def test_a_fit_that_was_stopped_at_its_end_reports_when_it_is_resumed(data, study, tmp_path):
    learn, trial, path = Learner(data, plain(), opt_func=sgd), study.ask(), tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(2, 0.1, callbacks=[OptunaReport(trial), Checkpoint(path), Stops])
    assert study.trials[0].intermediate_values == {}
    learn.resume(path, callbacks=[OptunaReport(trial), Stops])
    assert list(study.trials[0].intermediate_values) == [2]


def test_an_error_goes_before_the_pruner(learn, study):
    learn.metrics["told"] = told = Told([9.0])
    reporting = OptunaReport(study.ask(), "told")
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, 0.1, callbacks=[told, reporting, Raises(ZeroDivisionError)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trial": 3}, "trial must be an optuna.Trial or None, got 3"),
        ({"trial": None, "when": "batch"}, "when must be one of 'rung', 'epoch', got 'batch'"),
        ({"trial": None, "monitor": 3}, "monitor must be the name of a column, got 3"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        OptunaReport(**arguments)


def test_a_column_that_there_will_not_be_is_refused_before_training(learn):
    with pytest.raises(ValueError, match="did you mean 'valid_loss'"):
        learn.fit(1, 0.1, callbacks=[OptunaReport(None, "val_loss")])


def test_what_is_not_installed_is_named_with_its_extra(learn, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.train", None)
    with pytest.raises(ImportError, match=r'ray\.train .*pip install "onecycle\[ray\]"'):
        learn.fit(1, 0.1, callbacks=[RayReport])
