"""A run is trained for longer: from before its anneal, or from its end."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import Halt, Log, everything, make, mlp, plain, same, sgd, split_in_two, weights

from onecycle import Checkpoint, DataLoaders, Learner
from onecycle.schedules import constant, join, linear
from onecycle.trunk import before_anneal, size


def longer(epochs, up, down):
    """A flat run of the rate 0.01 with the warm-up of `fit_wsd`."""
    return join(linear(1 / 25, 1.0), constant(1.0), linear(1.0, 0.0), at=[up / epochs, down])


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
@pytest.mark.parametrize("loader", ["in_memory", "torch", "own_generator"])
@pytest.mark.parametrize("cooldown", [0.2, 0.27])
def test_from_the_trunk_is_bit_for_bit_the_longer_run(digit_tensors, opt, loader, cooldown):
    learn = make(digit_tensors, opt, loader)
    learn.fit_wsd(3, 0.01, cooldown=cooldown, warmup=0.1)
    learn.extend(2, cooldown=0.2)
    whole = make(digit_tensors, opt, loader)
    whole.fit(5, 0.01, schedule=longer(5, 0.3, 0.8))
    assert same(weights(learn), weights(whole))
    assert learn.recorder.history[-1]["valid_loss"] == whole.recorder.history[-1]["valid_loss"]


def test_the_trunk_is_within_an_epoch_where_the_loader_has_places(data):
    learn = Learner(data, mlp())
    learn.fit_wsd(3, 0.01, cooldown=0.25)
    assert learn.trunk.epoch == 2.2  # step 22 of 30 is the last flat one
    learn.extend(1)
    assert len(learn.recorder.losses) == 30 + 18


def test_a_stream_has_its_trunk_between_two_epochs(data):
    stream = DataLoaders(iter_of(data), data.valid)
    learn = Learner(stream, mlp())
    learn.fit_wsd(3, 0.01, cooldown=0.25)
    assert learn.trunk is None or learn.trunk.epoch == int(learn.trunk.epoch)


class iter_of:  # noqa: N801
    """A loader that can only be iterated."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data.train)

    def __iter__(self):
        return iter(list(self.data.train))


def test_one_history_goes_on(data):
    learn = Learner(data, mlp())
    learn.fit_one_cycle(4, 0.01)
    before = list(learn.recorder.history)
    learn.extend(2)
    assert learn.recorder.history[:4] == before
    assert [row["epoch"] for row in learn.recorder.history] == list(range(1, 9))
    assert learn.recorder.borders == [4.0]
    assert [plan["method"] for plan in learn.recorder.plans] == ["fit_one_cycle", "extend"]


def test_a_cycle_is_left_at_half_of_its_peak_and_annealed_to_its_end(data):
    learn = Learner(data, mlp(), opt_func=sgd)
    learn.fit_one_cycle(8, 0.1)
    assert learn.trunk.epoch == pytest.approx(0.65 * 8, abs=0.2)
    assert learn.trunk.values["lr"] == [pytest.approx(0.05, rel=0.1)]
    learn.extend(8)
    lrs, moms = learn.recorder.lrs[80:], learn.recorder.moms[80:]
    flat = 80 - 52  # to the middle of 16 epochs
    np.testing.assert_allclose(lrs[:flat], lrs[0])
    assert np.all(np.diff(lrs[flat:]) < 0)
    assert lrs[-1] == pytest.approx(0.1 / 25 / 1e4)
    assert moms[-1] == 0.95
    assert moms[0] == pytest.approx(0.9, abs=0.01)


def test_every_layer_group_goes_on_at_its_own_rate(data):
    learn = Learner(data, mlp(), splitter=split_in_two)
    learn.fit_wsd(4, slice(0.001, 0.01))
    learn.extend(2)
    assert learn.recorder.plans[-1]["max_lr"] == pytest.approx([0.001, 0.01])
    learn.extend(1, lr=0.02)
    assert learn.recorder.plans[-1]["max_lr"] == pytest.approx([0.002, 0.02])
    learn.extend(1, lr=[0.01, 0.02])
    assert learn.recorder.plans[-1]["max_lr"] == [0.01, 0.02]


@pytest.mark.parametrize(
    ("strategy", "first", "last", "epochs"),
    [
        ("decay", 0.01, 0.0, 3),
        ("cycle", 0.01 / 25, 0.01 / 25 / 1e4, 3),
        ("constant", 0.001, 0.001, 3),
    ],
)
def test_strategies_that_go_on_from_the_end(data, strategy, first, last, epochs):
    learn = Learner(data, mlp(), opt_func=sgd)
    learn.fit_one_cycle(2, 0.01)
    before = learn.opt.state_dict()["state"][0]["momentum_buffer"].clone()
    seen = Log()
    learn.extend(epochs, strategy, callbacks=seen)
    lrs = learn.recorder.lrs[20:]
    assert len(lrs) == 10 * epochs
    assert (lrs[0], lrs[-1]) == pytest.approx((first, last))
    assert not torch.equal(before, torch.zeros_like(before))  # kept, and not begun anew


def test_decay_is_a_straight_line_and_brings_momentum_back(data):
    learn = Learner(data, mlp(), opt_func=sgd)
    learn.fit_one_cycle(2, 0.01)
    learn.extend(2, "decay")
    np.testing.assert_allclose(learn.recorder.lrs[20:], np.linspace(0.01, 0, 20))
    np.testing.assert_allclose(learn.recorder.moms[20:], np.linspace(0.85, 0.95, 20), atol=1e-6)


@pytest.mark.parametrize(
    ("train", "strategy"),
    [
        (lambda learn: learn.fit_one_cycle(4, 0.01), "trunk"),
        (lambda learn: learn.fit_wsd(4, 0.01), "trunk"),
        (lambda learn: learn.fit_flat_cos(4, 0.01), "trunk"),
        (lambda learn: learn.fit_wsd(4, 0.01, cooldown=0.8), "decay"),  # almost from the beginning
        (lambda learn: learn.fit_one_cycle(4, 0.01, keep_trunk=False), "decay"),
        (lambda learn: learn.fit(4, 0.01), "decay"),
        (lambda learn: learn.fit_sgdr(2, 1, 0.01), "decay"),
    ],
)
def test_auto_takes_the_trunk_where_there_is_one(data, train, strategy):
    learn = Learner(data, mlp())
    train(learn)
    steps = len(learn.recorder.losses)
    learn.extend(1)
    trained = len(learn.recorder.losses) - steps
    assert trained > 10 if strategy == "trunk" else trained == 10


def test_an_extended_run_can_be_extended_again(data):
    learn = Learner(data, mlp())
    learn.fit_wsd(4, 0.01)
    learn.extend(2)
    assert learn.trunk.epoch == 3.2  # where the anneal to 6 began, too
    learn.extend(4, cooldown=0.25)
    assert learn.recorder.plans[-1]["tot_epochs"] == 10
    assert learn.trunk.epoch == 7.5


def test_the_plan_is_said_before_it_runs(data, capsys, monkeypatch):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn = Learner(data, mlp())
    learn.fit_wsd(4, 0.01)
    learn.extend(4, cooldown=0.25)
    text = capsys.readouterr().out
    assert (
        "extend: back to epoch 3.2, before the anneal; flat at 1.00e-02 to epoch 6, "
        "down to 0.0e+00 at 8: 4.8 epochs to train" in text
    )
    learn.fit(1, 0.01)
    learn.extend(2)
    assert "extend: 2 epochs from 1.00e-02 straight down to 0" in capsys.readouterr().out


def test_in_memory_no_file_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = Learner(data, mlp())
    learn.fit_one_cycle(2, 0.01)
    learn.extend(1)
    assert list(tmp_path.iterdir()) == []


def test_a_trunk_in_a_file_is_the_same(data, tmp_path):
    def run(keep_trunk):
        torch.manual_seed(2)
        learn = Learner(data, mlp())
        learn.fit_one_cycle(3, 0.01, keep_trunk=keep_trunk)
        learn.extend(2)
        return weights(learn)

    assert same(run(True), run(tmp_path / "trunk.pt"))
    assert (tmp_path / "trunk.pt").is_file()


def test_a_trunk_that_is_too_large_for_memory_is_not_kept(data, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    monkeypatch.setattr("onecycle.trunk.LIMIT", 100)
    learn = Learner(data, mlp())
    learn.fit_one_cycle(2, 0.01)
    assert learn.trunk is None
    assert "keep_trunk=path keeps it in a file" in capsys.readouterr().out


def test_training_is_the_same_whether_a_trunk_is_kept_or_not(digit_tensors):
    def run(keep_trunk):
        learn = make(digit_tensors)
        learn.fit_one_cycle(3, 0.01, keep_trunk=keep_trunk)
        return everything(learn)

    kept, not_kept = run(True), run(False)
    for state in (kept, not_kept):
        state["recorder"]["plans"][0].pop("keep_trunk")
        for row in state["recorder"]["history"]:
            row.pop("seconds")
    assert same(kept, not_kept)


def test_the_trunk_of_another_fit_is_not_gone_back_to(data):
    learn = Learner(data, mlp())
    learn.fit_one_cycle(2, 0.01)
    learn.fit(1, 0.01)
    assert learn.trunk is None
    with pytest.raises(ValueError, match="strategy='trunk' goes back"):
        learn.extend(1, "trunk")


def test_other_data_have_no_trunk(data, digit_tensors):
    learn = Learner(data, mlp())
    learn.fit_one_cycle(2, 0.01)
    x, y = digit_tensors
    learn.data = DataLoaders.from_tensors(x[:90], y[:90], valid=(x, y), batch_size=30)
    with pytest.raises(ValueError, match=r"strategy='trunk'.*samples"):
        learn.extend(1, "trunk")
    learn.extend(1)
    assert len(learn.recorder.losses) == 20 + 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("2",), TypeError, "epochs"),
        ((0,), ValueError, "epochs"),
        ((1, "best"), ValueError, "strategy"),
        ((1, "auto", -1.0), ValueError, "lr"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_lost(data, arguments, error, message):
    learn = Learner(data, mlp())
    learn.fit_one_cycle(2, 0.01)
    before = everything(learn)
    with pytest.raises(error, match=message):
        learn.extend(*arguments)
    assert same(before, everything(learn))
    learn.extend(1, "trunk")


def test_there_must_be_something_to_extend(data):
    with pytest.raises(ValueError, match="nothing to extend"):
        Learner(data, mlp()).extend(1)


NEVER = 10**6


def script(data, path, at):
    """What a user would write, killed after `at` steps of its last fit."""
    learn = Learner(data, mlp())
    learn.fit_wsd(4, 0.01, callbacks=Checkpoint(path, every_steps=1, resume=True))
    saver = Checkpoint(path, every_steps=1, resume=True)
    learn.extend(2, cooldown=0.25, callbacks=[saver, Halt(at)])
    return learn


@pytest.mark.parametrize("at", [33, 40, 47, 52])
def test_a_script_that_extends_is_resumed_bit_for_bit(data, tmp_path, at):
    torch.manual_seed(4)
    whole = script(data, tmp_path / "whole.pt", NEVER)
    path = tmp_path / "run.pt"
    torch.manual_seed(4)
    with pytest.raises(KeyboardInterrupt):
        script(data, path, at)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed = script(data, path, NEVER)
    assert same(weights(resumed), weights(whole))


@pytest.mark.parametrize("at", [10, 30, 35])
def test_a_resumed_run_has_its_trunk(data, tmp_path, at):
    def run(path, at=NEVER):
        torch.manual_seed(4)
        learn = Learner(data, mlp())
        saver = Checkpoint(path, every_steps=1, resume=True)
        learn.fit_wsd(4, 0.01, callbacks=[saver, Halt(at)])
        learn.extend(2)
        return learn

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.pt", at)
    assert same(weights(run(tmp_path / "run.pt")), weights(whole))


class Rates:
    """A scheduler of a given rate."""

    def __init__(self, rate):
        self.rate = rate

    def values_at(self, p):
        return {"lr": [self.rate(p)]}


@pytest.mark.parametrize(
    ("rate", "share", "place"),
    [
        (lambda p: 1.0 if p <= 0.8 else 5 - 5 * p, 1.0, 0.8),
        (lambda p: 1.0 - p, 0.5, 0.5),
        (lambda p: min(p / 0.3, (1 - p) / 0.7), 0.5, 0.65),
        (lambda p: 1.0, 1.0, None),
        (lambda p: 1.0 - p, 1.0, None),
        (lambda p: p, 0.5, None),
    ],
)
def test_where_the_anneal_begins(rate, share, place):
    found = before_anneal(Rates(rate), share)
    assert found == place if place is None else found == pytest.approx(place, abs=0.002)


def test_of_a_scheduler_of_torch_nothing_is_known():
    assert before_anneal(object(), 1.0) is None


def test_size_counts_tensors_in_containers():
    assert size([torch.zeros(2), {"a": (torch.zeros(1, dtype=torch.double), "text")}]) == 16


def test_steps_and_rates_join_without_a_jump(data):
    learn = Learner(data, plain())
    learn.fit_one_cycle(6, 0.01)
    learn.extend(6)
    lrs = learn.recorder.lrs[60:]
    assert max(abs(b - a) for a, b in pairwise(lrs)) < 0.01 / 15
