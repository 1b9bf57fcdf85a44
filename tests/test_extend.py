"""A run is trained for longer: from before its anneal, or from its end."""

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import Halt, Log, everything, make, mlp, plain, same, sgd, split_in_two, weights

from onecycle import Callback, Checkpoint, DataLoaders, Learner, SaveBest
from onecycle.schedules import constant, cosine, join, linear, sample
from onecycle.trunk import before_anneal, found, size


def longer(epochs, up, down):
    """A flat run of the rate 0.01 with the warm-up of `fit_wsd`."""
    return join(linear(1 / 25, 1.0), constant(1.0), cosine(1.0, 0.0), at=[up / epochs, down])


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
    assert learn.recorder.plans[-1]["start_epoch"] == 2
    assert len(learn.recorder.losses) == 30 + 18


def test_a_trunk_between_two_epochs_is_not_validated_again(data):
    learn = Learner(data, plain())
    learn.fit_wsd(5, 0.01)
    assert learn.trunk.epoch == 4.0
    learn.extend(1)
    assert len(learn.recorder.history) == 5 + 2


def test_what_a_trunk_is_trained_from_is_not_the_trunk(data):
    learn = Learner(data, plain())
    learn.fit_wsd(5, 0.01)
    state = learn.trunk.load()
    state["model"]["weight"].zero_()
    state["optimizer"]["state"]["state"][0]["exp_avg"].zero_()
    kept = learn.trunk.read()
    assert kept["model"]["weight"].any()
    assert kept["optimizer"]["state"]["state"][0]["exp_avg"].any()


def test_an_extension_lets_go_of_the_trunk_that_it_comes_from(data):
    learn = Learner(data, plain())
    learn.fit_wsd(5, 0.01)
    seen = []

    class Look(Callback):
        def on_epoch_begin(self, learn):
            seen.extend(saver.since for saver in learn.loop.savers)

    learn.extend(10, callbacks=Look())
    assert seen
    assert set(seen) == {None}


@pytest.mark.parametrize(
    ("fit", "epochs", "place"),
    [
        ("fit_wsd", 1, None),
        ("fit_wsd", 3, 2.0),
        ("fit_wsd", 5, 4.0),  # the anneal begins with an epoch
        ("fit_wsd", 10, 8.0),
        ("fit_one_cycle", 1, None),
        ("fit_one_cycle", 2, 1.0),
        ("fit_one_cycle", 8, 5.0),
    ],
)
def test_a_stream_has_its_trunk_at_the_last_end_of_an_epoch_before_the_anneal(
    data, fit, epochs, place
):
    learn = Learner(DataLoaders(iter_of(data), data.valid), plain())
    getattr(learn, fit)(epochs, 0.01)
    assert (learn.trunk and learn.trunk.epoch) == place
    learn.extend(1)
    assert learn.recorder.plans[-1]["max_lr"][0] >= 0.005


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


def test_an_extension_trains_the_rest_of_the_epoch_of_its_trunk(data):
    learn = Learner(data, mlp())
    learn.fit_wsd(4, 0.01, cooldown=0.05)
    assert learn.trunk.epoch == 3.8
    learn.extend(2)
    assert learn.recorder.plans[-1]["start_epoch"] == 3
    assert len(learn.recorder.history) == 4 + 3


def test_a_cycle_is_left_at_half_of_its_peak_and_annealed_to_its_end(data):
    learn = Learner(data, mlp(), opt_func=sgd)
    learn.fit_one_cycle(8, 0.1)
    assert learn.trunk.epoch == pytest.approx(0.65 * 8, abs=0.2)
    assert learn.trunk.values["lr"] == [pytest.approx(0.05, rel=0.1)]
    learn.extend(8)
    lrs, moms = learn.recorder.lrs[80:], learn.recorder.moms[80:]
    flat = 56 - 52  # 65 % of 16 epochs are for the anneal
    np.testing.assert_allclose(lrs[:flat], 0.1)
    assert np.all(np.diff(lrs[flat:]) < 0)
    assert lrs[-1] == pytest.approx(0.1 / 25 / 1e4)
    assert moms[-1] == 0.95
    assert moms[0] == 0.85


def test_an_anneal_that_is_due_at_once_begins_at_the_trunk(data):
    learn = Learner(data, plain())
    learn.fit_wsd(4, 0.01)
    learn.extend(1)
    lrs = learn.recorder.lrs[40:]
    np.testing.assert_allclose(lrs, sample(cosine(0.01, 0.0), 18), atol=1e-12)


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
        "then down to 0.0e+00 at 8: 4.8 epochs to train" in text
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


@pytest.mark.parametrize("opt", [torch.optim.SGD, torch.optim.Adagrad])
@pytest.mark.parametrize("strategy", ["decay", "cycle", "trunk"])
@pytest.mark.filterwarnings("ignore:.*has no momentum in use")
def test_an_optimizer_without_momentum_gets_none(data, opt, strategy):
    learn = Learner(data, plain(), opt_func=opt)
    learn.fit_one_cycle(2, 0.01)
    learn.extend(1, strategy)
    assert not np.nan_to_num(learn.recorder.moms).any()


def other_optimizer(learn):
    learn.opt = torch.optim.Adam(learn.model.parameters(), lr=0.01, weight_decay=0.01)


@pytest.mark.parametrize(
    ("change", "splitter", "message"),
    [
        (lambda learn: learn.freeze(), split_in_two, "trained"),
        (other_optimizer, None, "opt_func"),
    ],
)
def test_a_learner_that_was_changed_does_not_go_back(data, change, splitter, message):
    learn = Learner(data, mlp(), splitter=splitter, opt_func=torch.optim.AdamW)
    learn.fit_one_cycle(2, 0.01)
    change(learn)
    trained = [p.requires_grad for p in learn.model.parameters()]
    with pytest.raises(ValueError, match=rf"strategy='trunk'.*{message}"):
        learn.extend(1, "trunk")
    learn.extend(1)
    assert len(learn.recorder.losses) == 20 + 10
    assert [p.requires_grad for p in learn.model.parameters()] == trained


def test_another_number_of_layer_groups_asks_for_a_rate(data):
    learn = Learner(data, mlp(), splitter=split_in_two)
    learn.fit_one_cycle(2, 0.01)
    other_optimizer(learn)
    with pytest.raises(ValueError, match="lr must be given: the last fit had 2 layer groups"):
        learn.extend(1)
    learn.extend(1, lr=0.02)
    assert learn.recorder.plans[-1]["max_lr"] == [0.02]


def test_what_was_loaded_is_what_goes_on(data, tmp_path):
    learn = Learner(data, mlp())
    learn.save(tmp_path / "model.pt")
    learn.fit_one_cycle(2, 0.01)
    learn.load(tmp_path / "model.pt")
    assert learn.trunk is None
    learn.extend(1)
    assert len(learn.recorder.losses) == 20 + 10


def test_an_extension_that_comes_to_nothing_leaves_the_trunk(data):
    learn = Learner(data, mlp())
    learn.fit_one_cycle(2, 0.01)
    trunk = learn.trunk
    with pytest.raises(RuntimeError, match="no"):
        learn.extend(1, callbacks=Log({("on_train_begin", 1): RuntimeError("no")}))
    assert learn.trunk is trunk
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 0.01, callbacks=Halt(1))
    assert learn.trunk is None


def test_a_fit_within_a_fit_changes_nothing(data):
    seen = []

    class Inner(Callback):
        def on_epoch_end(self, learn):
            with pytest.raises(RuntimeError, match="running already"):
                learn.fit_one_cycle(1, 0.01)
            seen.append((learn.plan["method"], learn.scheduler.values_at(1.0)["lr"][0]))

    Learner(data, mlp()).fit_wsd(1, 0.01, callbacks=Inner())
    assert seen == [("fit_wsd", 0.0)]


def test_best_weights_of_an_abandoned_anneal_do_not_come_back(data, tmp_path):
    learn = Learner(data, mlp(), callbacks=[SaveBest(tmp_path / "best.pt")])
    learn.fit_one_cycle(6, 0.01)
    learn.extend(1, lr=1.0)
    before, own = (
        [row["valid_loss"] for row in rows]
        for rows in (learn.recorder.history[:6], learn.recorder.history[6:])
    )
    assert min(own) > before[2]  # the last that the trunk has seen
    assert learn.validate()["valid_loss"] == pytest.approx(min(own))


def test_a_trunk_is_shown_in_a_line(data):
    learn = Learner(data, mlp())
    learn.fit_one_cycle(1, 0.01)
    assert len(repr(learn.trunk)) < 300


# ---- files ---------------------------------------------------------------------------------------


class Odd(Callback):
    """Its memory fits into no file."""

    def state_dict(self):
        return {"a": object()}


def test_a_memory_that_no_file_can_hold_costs_the_trunk_and_not_the_run(data):
    learn = Learner(data, mlp(), callbacks=[Odd()])
    with pytest.warns(UserWarning, match="not kept for extend.*Odd"):
        learn.fit_one_cycle(2, 0.01)
    assert learn.trunk is None
    assert len(learn.recorder.losses) == 20


def test_a_trunk_that_cannot_be_written_does_not_end_the_run(data, tmp_path):
    (tmp_path / "run.pt.trunk").mkdir()
    learn = Learner(data, mlp())
    with pytest.warns(UserWarning, match=r"not kept for extend.*run\.pt\.trunk"):
        learn.fit_one_cycle(2, 0.01, callbacks=Checkpoint(tmp_path / "run.pt"))
    assert learn.trunk is None
    assert len(learn.recorder.losses) == 20


def test_nor_does_one_that_an_extension_begins_with(data, tmp_path):
    learn = Learner(data, mlp())
    learn.fit_one_cycle(4, 0.01)
    (tmp_path / "folder").touch()
    with pytest.warns(UserWarning, match="not kept for extend"):
        learn.extend(1, keep_trunk=tmp_path / "folder" / "trunk.pt")
    assert len(learn.recorder.losses) == 40 + 24


@pytest.mark.parametrize("saver", [Checkpoint, SaveBest])
def test_the_file_of_a_trunk_is_its_own(data, tmp_path, saver):
    path = tmp_path / "run.pt"
    with pytest.raises(ValueError, match=r"keep_trunk: .*run\.pt.*too"):
        Learner(data, mlp()).fit_one_cycle(2, 0.01, keep_trunk=path, callbacks=saver(path))


@pytest.mark.parametrize("keep_trunk", [None, 1, ""])
def test_keep_trunk_is_a_flag_or_a_file(data, keep_trunk):
    with pytest.raises(TypeError, match="keep_trunk must be the name of a file"):
        Learner(data, mlp()).fit_one_cycle(1, 0.01, keep_trunk=keep_trunk)


def test_a_trunk_is_no_run(data, tmp_path):
    path = tmp_path / "trunk.pt"
    learn = Learner(data, mlp())
    learn.fit_one_cycle(1, 0.01, keep_trunk=path)
    with pytest.raises(ValueError, match="holds the trunk of a run"):
        Learner(data, mlp()).resume(path)
    with pytest.raises(ValueError, match="holds the trunk of a run"):
        Learner(data, mlp()).fit(1, callbacks=Checkpoint(path))


def test_a_trunk_in_a_file_is_that_of_one_plan(data, tmp_path):
    path = tmp_path / "trunk.pt"
    learn = Learner(data, mlp())
    learn.fit_one_cycle(2, 0.01, keep_trunk=path)
    plan = learn.recorder.plans[-1]
    assert found(path, plan).epoch == learn.trunk.epoch
    assert found(path, {**plan, "tot_epochs": 3}) is None
    assert found(tmp_path / "none.pt", plan) is None


def test_a_trunk_that_is_gone_is_told(data, tmp_path):
    learn = Learner(data, mlp())
    learn.fit_one_cycle(1, 0.01, keep_trunk=tmp_path / "trunk.pt")
    (tmp_path / "trunk.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"trunk\.pt"):
        learn.extend(1)
    learn.extend(1, "decay")


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


def test_a_learner_that_goes_on_with_its_own_run_has_its_trunk(data, tmp_path):
    learn = Learner(data, mlp())
    saver, stop = Checkpoint(tmp_path / "run.pt", every_steps=1), Halt(20)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_wsd(4, 0.01, callbacks=[saver, stop])
    assert learn.trunk is None
    learn.resume(saver.path, callbacks=Halt(NEVER))
    assert learn.trunk.epoch == 3.2


class Dies(Checkpoint):
    """Is killed right after the checkpoint of a step."""

    at = None

    def rest(self, learn, **how):
        super().rest(learn, **how)
        if learn.step == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stale", [True, False])
@pytest.mark.parametrize("at", [10, 32])
def test_no_checkpoint_is_written_before_the_trunk_of_its_step(data, tmp_path, stale, at):
    def run(path, at=None, seed=4):
        learn, saver = Learner(data, mlp()), Dies(path, every_steps=1, resume=True)
        saver.at = at
        torch.manual_seed(seed)
        learn.fit_wsd(4, 0.01, callbacks=saver)
        learn.extend(2)
        return weights(learn)

    whole = run(tmp_path / "whole.pt")
    if stale:  # of a run with the very same plan
        assert not same(run(tmp_path / "run.pt", seed=5), whole)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.pt", at)
    assert same(run(tmp_path / "run.pt"), whole)


@pytest.mark.parametrize("at", [34, 45])
def test_the_trunk_that_an_extension_begins_with_is_there_after_a_resume(data, tmp_path, at):
    def run(path, at=NEVER):
        learn = Learner(data, mlp())
        learn.fit_wsd(4, 0.01, callbacks=Checkpoint(path, every_steps=1, resume=True))
        saver = Checkpoint(path, every_steps=1, resume=True)
        learn.extend(1, callbacks=[saver, Halt(at)])  # which anneals at once
        learn.extend(2)
        return learn

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.pt", at)
    assert same(weights(run(tmp_path / "run.pt")), weights(whole))


@pytest.mark.parametrize("at", [34, 40, 47])
def test_an_extension_is_finished_by_its_file_alone(data, tmp_path, at):
    def run(path, at=NEVER):
        learn = Learner(data, mlp())
        learn.fit_wsd(4, 0.01)
        saver = Checkpoint(path, every_steps=1)
        learn.extend(2, cooldown=0.25, callbacks=[saver, Halt(at)])
        return learn

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run.pt", at)
    learn = Learner(data, mlp())
    learn.resume(tmp_path / "run.pt", callbacks=Halt(NEVER))
    assert same(weights(learn), weights(whole))
    whole.extend(1)
    learn.extend(1)
    assert same(weights(learn), weights(whole))


@pytest.mark.parametrize("other", [{"lr": 0.02}, {"cooldown": 0.3}, {"wd": 0.5}])
def test_another_extension_than_the_saved_one_is_refused(data, tmp_path, other):
    def run(stop, **options):
        learn = Learner(data, mlp())
        learn.fit_wsd(3, 0.01, callbacks=Checkpoint(path, resume=True))
        saver = Checkpoint(path, every_steps=1, resume=True)
        learn.extend(2, callbacks=[saver, Halt(stop)], **options)

    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(30)
    with pytest.raises(ValueError, match=r"another: it has extend with \[2, 'auto', None, 0.65"):
        run(NEVER, **other)
    run(NEVER)


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


@pytest.mark.parametrize("by", ["keep_trunk", "checkpoint"])
def test_a_finished_run_is_extended_in_another_process(data, tmp_path, by):
    path = tmp_path / "run.pt.trunk"
    options = {"keep_trunk": path} if by == "keep_trunk" else {}
    saver = Checkpoint(tmp_path / "run.pt") if by == "checkpoint" else ()
    torch.manual_seed(1)
    learn = Learner(data, mlp())
    learn.fit_one_cycle(4, 0.01, callbacks=saver, **options)
    learn.extend(2)
    torch.manual_seed(99)
    other = Learner(data, mlp())
    other.extend(2, trunk=path)
    assert same(weights(other), weights(learn))
    assert other.recorder.lrs.tolist() == learn.recorder.lrs[40:].tolist()


def test_a_file_without_a_trunk_is_named(data, tmp_path):
    learn = Learner(data, mlp())
    learn.save(tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"trunk: .*model\.pt' holds none"):
        learn.extend(1, trunk=tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        learn.extend(1, trunk=tmp_path / "none.pt")
