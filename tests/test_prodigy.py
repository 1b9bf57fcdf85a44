"""Optimizers that set the scale of their steps by themselves: Prodigy."""

import math
import pickle

import pytest
import torch
from helpers import Halt, everything, mlp, same, sgd, split_in_two, weights
from prodigyopt import Prodigy

from onecycle import Checkpoint, Learner, optimizers
from onecycle.found import LROverlay


@pytest.fixture
def prodigy(data):
    return Learner(data, mlp(), opt_func=Prodigy)


@pytest.mark.parametrize("method", ["sweep", "race", "linear"])
def test_lr_find_states_the_factor_and_sweeps_nothing(prodigy, method):
    before = everything(prodigy)
    found = prodigy.lr_find(method=method)
    assert same(before, everything(prodigy))
    assert (found, found.confidence, len(found.lrs)) == (1.0, "high", 0)
    assert "Prodigy sets its own scale, and lr=1.0" in repr(found)
    assert same(repr(pickle.loads(pickle.dumps(found))), repr(found))


def test_the_statement_is_drawn_and_reported(prodigy, tmp_path):
    prodigy.fit_one_cycle(1, prodigy.lr_find())
    assert "Prodigy sets its own" in prodigy.recorder.plot().get_title().replace("\n", " ")
    assert "Prodigy sets its own" in prodigy.report(tmp_path / "report.html").read_text()


def test_a_setting_called_d_is_no_scale():
    class Own(torch.optim.SGD):
        def __init__(self, params, lr=0.1, d=2.0):
            super().__init__(params, lr)
            for group in self.param_groups:
                group["d"] = d

    assert not optimizers.sets_scale(Own(mlp().parameters()))


def test_a_comparison_states_it_for_each(prodigy):
    found = prodigy.lr_find(wd=[0.0, 0.1])
    assert isinstance(found, LROverlay)
    assert [found[0.0], found[0.1]] == [1.0, 1.0]


def test_beside_another_optimizer_there_is_no_one_rate(data):
    learn = Learner(data, mlp(), opt_func=[Prodigy, sgd], splitter=split_in_two)
    found = learn.lr_find()
    assert math.isnan(found)
    with pytest.raises(ValueError, match=r"the rest of Prodigy \+ SGD does not"):
        learn.fit(1, found)
    learn.fit_one_cycle(1, [1.0, 0.01])


def test_a_1cycle_multiplies_the_scale_that_it_finds(prodigy):
    prodigy.fit_one_cycle(4)
    assert prodigy.recorder.lrs.max() == 1.0
    group = prodigy.opt.param_groups[0]
    assert group["d"] > 100 * group["d0"]
    assert prodigy.recorder.history[-1]["valid_loss"] < prodigy.recorder.history[0]["valid_loss"]


def test_the_next_fit_goes_on_with_the_scale(prodigy):
    prodigy.fit(1)
    scale = prodigy.opt.param_groups[0]["d"]
    prodigy.fit(1)
    assert prodigy.opt.param_groups[0]["d"] >= scale > 1e-6


def test_a_rehearsal_leaves_no_trace(prodigy):
    prodigy.fit(1)
    before = everything(prodigy)
    with prodigy.rehearsal() as rehearse:
        rehearse(5, [])
    assert same(before, everything(prodigy))


def test_a_run_that_was_killed_ends_bit_for_bit_as_one_that_was_not(data, tmp_path):
    def learner():
        torch.manual_seed(2)
        return Learner(data.again(), mlp(), opt_func=Prodigy)

    whole, killed, resumed = (learner() for _ in range(3))
    for learn, at in ((whole, 99), (killed, 8)):
        saver = Checkpoint(tmp_path / str(at), every_steps=3)
        try:
            torch.manual_seed(2)
            learn.fit_one_cycle(2, callbacks=[saver, Halt(at)])
        except KeyboardInterrupt:
            assert learn is killed
    resumed.resume(tmp_path / "8", callbacks=[Halt(99)])
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Rprop])
def test_others_need_a_rate(kind):
    assert not optimizers.sets_scale(optimizers.build(mlp(), kind))
