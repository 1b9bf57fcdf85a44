"""SaveBest: which epoch is in the file, and in the model at the end."""

import copy
import math

import pytest
import torch
from helpers import Cancels, Halt, Kept, Told, mlp, plain, same, sgd, weights

from onecycle import (
    EMA,
    Callback,
    Checkpoint,
    EarlyStopping,
    Learner,
    SaveBest,
    accuracy,
    checkpoint,
)

NAN = math.nan


@pytest.fixture
def path(tmp_path):
    return tmp_path / "best.pt"


def told_learner(data, values):
    told = Told(values)
    return Learner(data, mlp(), opt_func=sgd, metrics={"told": told}, callbacks=[told])


def in_file(path):
    return checkpoint.load(path)["model"]


class Writes(Callback):
    """The epochs that wrote the file."""

    def __init__(self, file):
        self.file, self.epochs, self.last = file, [], None

    def on_epoch_end(self, learn):
        now = self.file.stat().st_mtime_ns if self.file.exists() else None
        if now != self.last:
            self.epochs.append(learn.epoch)
        self.last = now


@pytest.mark.parametrize(
    ("values", "options", "epochs"),
    [
        ([3, 2, 2, 1], {}, [0, 1, 3]),
        ([3, 2, 2, 1], {"min_delta": 1.5}, [0, 3]),
        ([3, 2, 4, 1], {"mode": "max"}, [0, 2]),
        ([NAN, 2, NAN, 1], {}, [0, 1, 3]),
        ([2, NAN, 3, NAN], {}, [0]),
    ],
)
def test_every_better_epoch_is_written_and_the_best_is_loaded(data, path, values, options, epochs):
    learn, kept, writes = told_learner(data, values), Kept(), Writes(path)
    learn.fit(4, 0.1, callbacks=[kept, SaveBest(path, "told", **options), writes])
    assert writes.epochs == epochs
    assert same(learn.model.state_dict(), kept.states[epochs[-1]])
    assert same(in_file(path), kept.states[epochs[-1]])


def test_without_load_the_model_stays_as_it_was_trained(data, path):
    learn, kept = told_learner(data, [1, 2]), Kept()
    learn.fit(2, 0.1, callbacks=[kept, SaveBest(path, "told", load=False)])
    assert same(learn.model.state_dict(), kept.states[1])
    assert same(in_file(path), kept.states[0])


def test_no_epoch_is_the_best_where_all_are_nan(data, path):
    learn, kept = told_learner(data, [NAN, NAN]), Kept()
    learn.fit(2, 0.1, callbacks=[kept, SaveBest(path, "told")])
    assert same(learn.model.state_dict(), kept.states[1])


def test_an_epoch_without_the_value_writes_nothing(data, path):
    writes = Writes(path)
    learn = told_learner(data, [0, 3, 2])
    learn.fit(3, callbacks=[Cancels(0), SaveBest(path, "told"), writes])
    assert writes.epochs == [1, 2]


def test_the_file_is_one_of_save(data, path):
    learn = Learner(data, mlp(), metrics=[accuracy])
    learn.fit_one_cycle(3, 0.01, callbacks=[SaveBest(path, "accuracy")])
    other = Learner(data, mlp())
    rates = [group["lr"] for group in other.opt.param_groups]
    other.load(path)
    assert same(other.model.state_dict(), learn.model.state_dict())
    assert other.opt.state_dict()["state"]
    assert [group["lr"] for group in other.opt.param_groups] == rates
    assert other.validate()["valid_loss"] == pytest.approx(learn.validate()["valid_loss"])


def test_a_file_of_another_run_is_replaced_and_never_loaded(data, path):
    best = SaveBest(path, "told")
    told_learner(data, [-1.0]).fit(1, callbacks=[best])
    learn, kept = told_learner(data, [5, 6]), Kept()
    learn.fit(2, 0.1, callbacks=[kept, best])
    assert best.monitor.best == 5
    assert same(learn.model.state_dict(), kept.states[0])
    assert same(in_file(path), kept.states[0])


@pytest.mark.parametrize("stops", [Halt(5), Cancels(0)])
def test_without_a_finished_epoch_nothing_is_touched(data, path, stops):
    told_learner(data, [-1.0]).fit(1, 0.1, callbacks=[SaveBest(path, "told")])
    there = path.read_bytes()
    learn = told_learner(data, [1.0])
    before = copy.deepcopy(learn.model.state_dict())
    try:
        learn.fit(1, callbacks=[SaveBest(path, "told"), stops])
    except KeyboardInterrupt:
        assert not same(learn.model.state_dict(), before)
    else:
        assert same(learn.model.state_dict(), before)
    assert path.read_bytes() == there


class Meddles(Callback):
    """Writes or removes the file in the last epoch."""

    def __init__(self, what):
        self.what = what

    def on_epoch_begin(self, learn):
        if learn.epoch + 1 == learn.n_epochs:
            self.what()


def test_a_file_that_another_run_replaced_is_refused(data, path):
    other = told_learner(data, [-1.0])
    meddles = Meddles(lambda: other.fit(1, callbacks=[SaveBest(path, "told")]))
    learn, kept = told_learner(data, [1, 2]), Kept()
    with pytest.raises(ValueError, match="replaced by somebody else"):
        learn.fit(2, 0.1, callbacks=[SaveBest(path, "told"), kept, meddles])
    assert same(learn.model.state_dict(), kept.states[1])


def test_so_is_one_of_learner_save(data, path):
    learn = told_learner(data, [1, 2])
    meddles = Meddles(lambda: Learner(data, mlp()).save(path))
    with pytest.raises(ValueError, match="replaced by somebody else"):
        learn.fit(2, callbacks=[SaveBest(path, "told"), meddles])


def test_a_file_that_is_gone_is_told(data, path):
    learn = told_learner(data, [1, 2])
    with pytest.raises(FileNotFoundError, match=r"no file .*best\.pt"):
        learn.fit(2, callbacks=[SaveBest(path, "told"), Meddles(path.unlink)])


@pytest.mark.parametrize("make", [Checkpoint, SaveBest])
def test_a_path_that_another_callback_writes_is_refused(data, path, make):
    learn = Learner(data, plain())
    with pytest.raises(ValueError, match=f"written by a {make.__name__}, too"):
        learn.fit(1, callbacks=[SaveBest(path), make(path)])


def test_a_file_that_cannot_be_written_is_told_before_the_first_step(data, tmp_path):
    (tmp_path / "file").touch()
    learn = Learner(data, plain())
    with pytest.raises(OSError, match="cannot be written"):
        learn.fit(1, 0.1, callbacks=[SaveBest(tmp_path / "file" / "best.pt")])
    assert not len(learn.recorder.losses)
    learn.fit(1, 0.1, callbacks=[Cancels(0), SaveBest(tmp_path / "new" / "best.pt")])
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("name", ["a/../run.pt", "run.pt.1", "run.pt.2", "run.pt.trunk"])
def test_so_is_any_other_file_of_a_checkpoint(data, tmp_path, name):
    learn = Learner(data, plain())
    given = [SaveBest(tmp_path / name), Checkpoint(tmp_path / "run.pt", keep=3)]
    with pytest.raises(ValueError, match=r"(path|keep_trunk): .* is written by a \w+"):
        learn.fit_one_cycle(1, 0.1, callbacks=given)
    given = [SaveBest(tmp_path / "run.pt.3"), Checkpoint(tmp_path / "run.pt", keep=3)]
    learn.fit_one_cycle(1, 0.1, callbacks=given)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"path": 3}, TypeError),
        ({"path": "."}, IsADirectoryError),
        ({"path": "a", "load": 1}, TypeError),
        ({"path": "a", "min_delta": -1}, ValueError),
        ({"path": "a", "mode": "least"}, ValueError),
    ],
)
def test_a_bad_argument_is_named(arguments, error):
    with pytest.raises(error, match=list(arguments)[-1]):
        SaveBest(**arguments)


@pytest.mark.parametrize("at", [5, 15, 25, 35])
def test_resumed_it_goes_on_with_its_best(data, tmp_path, path, at):
    values, saver = [2, 1, 3, 1.5], Checkpoint(tmp_path / "run.pt", every_steps=1)
    whole = told_learner(data, values)
    torch.manual_seed(4)
    whole.fit_one_cycle(4, 0.1, callbacks=[SaveBest(tmp_path / "whole.pt", "told")])

    learn, best = told_learner(data, values), SaveBest(path, "told")
    torch.manual_seed(4)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(4, 0.1, callbacks=[best, saver, Halt(at)])
    learn, best = told_learner(data, values), SaveBest(path, "told")
    learn.resume(tmp_path / "run.pt", callbacks=[best, Halt(0)])
    assert best.monitor.best == 1
    assert same(weights(learn), weights(whole))
    assert same(in_file(path), in_file(tmp_path / "whole.pt"))


@pytest.mark.parametrize("keep", ["memory", "file"])
def test_by_a_column_of_averaged_weights_the_averaged_weights_are_kept(data, tmp_path, keep):
    ema = EMA(half_life=0.5)
    keeper = (
        EarlyStopping("ema_valid_loss", patience=9, restore_best=True)
        if keep == "memory"
        else SaveBest(tmp_path / "best.pt", "ema_valid_loss")
    )
    learn = Learner(data, mlp())
    learn.fit(3, 0.01, callbacks=[ema, keeper])
    best = min(row["ema_valid_loss"] for row in learn.recorder.history)
    assert learn.validate()["valid_loss"] == best


class Logs(Callback):
    """A callback of somebody else, who calls something else a prefix."""

    def __init__(self, prefix):
        self.prefix = prefix


@pytest.mark.parametrize("prefix", ["valid", "ema", ""])
def test_a_prefix_alone_makes_no_averages(data, path, prefix):
    learn = Learner(data, plain())
    learn.fit(1, 0.01, callbacks=[Logs(prefix), EMA(), SaveBest(path)])
    with pytest.raises(ValueError, match="monitor must be one of"):
        learn.fit(1, callbacks=[Logs("x"), SaveBest(path, "x_valid_loss")])


def test_of_two_averages_that_of_the_column_is_kept(data, path):
    slow, fast = EMA(0.5), EMA(0.02)
    fast.prefix = "ema_fast"
    learn = Learner(data, mlp())
    learn.fit(3, 0.01, callbacks=[slow, fast, SaveBest(path, "ema_fast_valid_loss")])
    best = min(row["ema_fast_valid_loss"] for row in learn.recorder.history)
    assert learn.validate()["valid_loss"] == best
