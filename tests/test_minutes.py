"""Minutes instead of epochs: the clock is the progress of a run."""

import time

import numpy as np
import pytest
import torch
from helpers import Halt, mlp, plain, sgd

from onecycle import (
    SWA,
    Callback,
    CancelBatch,
    CancelEpoch,
    Checkpoint,
    DataLoaders,
    EarlyStopping,
    Learner,
    TorchScheduler,
)
from onecycle.schedules import linear, one_cycle, one_cycle_momentum

NEVER = 10**6


class Clock(Callback):
    """Time that passes in training steps and validation batches, and in nothing else."""

    def __init__(self, monkeypatch, step, validation=0.0):
        self.now, self.step, self.validation = 1000.0, step, validation
        monkeypatch.setattr("onecycle.callbacks.time_budget.time", self)

    def monotonic(self):
        return self.now

    def on_loss_begin(self, learn):
        self.now += self.step

    def on_validate_batch_end(self, learn):
        self.now += self.validation

    def state_dict(self):
        return {"now": self.now}


@pytest.fixture
def timed(data, monkeypatch):
    """A learner whose steps take `step` seconds, and its clock."""

    def make(step=1.0, validation=0.0, **options):
        clock = Clock(monkeypatch, step, validation)
        return Learner(data, mlp(), callbacks=[clock], opt_func=sgd, **options), clock

    return make


@pytest.mark.parametrize(
    ("minutes", "step", "validation"),
    [
        (1, 1.0, 0.0),
        (2, 0.7, 0.5),
        (10, 1.3, 2.0),
        (0.5, 1.0, 1.0),
        (0.05, 1.0, 1.0),
    ],
)
def test_a_run_ends_in_time_and_its_anneal_is_complete(timed, minutes, step, validation):
    learn, clock = timed(step, validation)
    learn.fit_one_cycle(minutes=minutes, max_lr=0.1)
    seconds = clock.now - 1000
    assert abs(seconds - 60 * minutes) <= max(0.02 * 60 * minutes, step + 4 * validation)
    assert learn.recorder.lrs[-1] == pytest.approx(0.1 / 25 / 1e4)
    assert learn.recorder.moms[-1] == 0.95
    assert "valid_loss" in learn.recorder.history[-1]


def test_however_little_time_there_is_the_first_value_and_the_last_are_trained_at(timed):
    learn, _ = timed(step=1.0)
    learn.fit_one_cycle(minutes=0.001, max_lr=0.1)
    assert learn.recorder.lrs.tolist() == pytest.approx([0.1 / 25, 0.1 / 25 / 1e4])


def test_progress_is_the_clock(timed):
    learn, _ = timed(step=1.0)
    learn.fit_one_cycle(minutes=1, max_lr=0.1)
    lrs = learn.recorder.lrs
    # How long a step takes is not known before the second is over.
    points = [0.0, 1 / 60, *(t / 59 for t in range(2, 60))]
    np.testing.assert_allclose(lrs, [one_cycle(0.1)(p) for p in points])
    np.testing.assert_allclose(
        learn.recorder.moms, [one_cycle_momentum()(p) for p in points], atol=1e-6
    )


def test_validation_is_part_of_the_budget(timed):
    learn, clock = timed(step=1.0, validation=1.0)  # 10 + 4 seconds for an epoch
    learn.fit(minutes=1, lr=0.1)
    assert abs(clock.now - 1000 - 60) <= 1.2
    assert len(learn.recorder.losses) == 41  # the next validation would be too late


def test_a_machine_that_gets_slower_anneals_in_time_nevertheless(timed):
    learn, clock = timed(step=0.1)

    class Slower(Callback):
        def on_step_end(self, learn):
            clock.step *= 1.01

    learn.fit_wsd(minutes=1, max_lr=0.1, callbacks=Slower())
    assert abs(clock.now - 1000 - 60) <= 0.02 * 60
    assert learn.recorder.lrs[-1] == 0.0


@pytest.mark.parametrize(("epochs", "steps"), [(2, 20), (50, 60)])
def test_of_epochs_and_minutes_the_first_to_be_reached_ends_the_run(timed, epochs, steps):
    learn, _ = timed(step=1.0)
    learn.fit(epochs, 0.1, minutes=1, schedule=linear(1.0, 0.0))
    assert len(learn.recorder.losses) == steps
    assert learn.recorder.lrs[-1] == 0.0
    assert np.all(np.diff(learn.recorder.lrs) < 0)


def test_epochs_that_are_reached_first_have_their_own_progress(timed):
    learn, _ = timed(step=1.0)
    learn.fit_one_cycle(2, 0.1, minutes=60)
    grid = [one_cycle(0.1)(t / 19) for t in range(20)]
    np.testing.assert_allclose(learn.recorder.lrs, grid)


def test_time_already_used_counts_after_a_resume(timed, data, monkeypatch, tmp_path):
    path = tmp_path / "run.pt"
    learn, clock = timed(step=1.0)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(
            minutes=1, max_lr=0.1, callbacks=[Checkpoint(path, every_steps=1), Halt(35)]
        )
    clock = Clock(monkeypatch, 1.0)
    clock.now = 5000.0  # hours later
    again = Learner(data, mlp(), callbacks=[clock], opt_func=sgd)
    again.resume(path, callbacks=Halt(NEVER))
    assert clock.now - 5000 == pytest.approx(60 - 35, abs=1.1)
    assert len(again.recorder.losses) == 60
    assert again.recorder.lrs[-1] == pytest.approx(0.1 / 25 / 1e4)


def test_without_validation_data(digit_tensors, monkeypatch):
    x, y = digit_tensors
    clock = Clock(monkeypatch, 1.0)
    learn = Learner(
        (DataLoaders.from_tensors(x, y, valid=(x, y), batch_size=100).train, None),
        plain(),
        callbacks=[clock],
    )
    learn.fit_one_cycle(minutes=0.5, max_lr=0.01)
    assert len(learn.recorder.losses) == 30


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_last_update_is_at_the_end_of_the_schedule(timed, accumulate):
    learn, _ = timed(step=1.0, accumulate=accumulate)
    learn.fit_one_cycle(minutes=0.4, max_lr=0.1)
    assert learn.recorder.lrs[-1] == pytest.approx(0.1 / 25 / 1e4)


def test_a_run_of_minutes_can_be_extended(timed):
    learn, _ = timed(step=1.0)
    learn.fit_one_cycle(minutes=1, max_lr=0.1)
    assert learn.trunk.epoch == pytest.approx(0.65 * 6, abs=0.2)
    learn.extend(2)
    assert learn.recorder.plans[-1]["tot_epochs"] == 8


def test_what_a_hook_sees_of_the_plan(timed):
    learn, _ = timed(step=1.0)
    seen = []

    class Look(Callback):
        def on_epoch_begin(self, learn):
            seen.append((learn.epoch, learn.n_epochs))

    learn.fit_one_cycle(minutes=1, max_lr=0.1, callbacks=Look())
    assert seen[0] == (0, 1)
    assert [n for _, n in seen[1:]] == pytest.approx([6] * 5, abs=1)


@pytest.mark.parametrize("first", [20.0, 35.0])
def test_a_slow_first_step_does_not_end_the_run(timed, first):
    learn, clock = timed(step=first)

    class Faster(Callback):
        def on_step_end(self, learn):
            clock.step = 0.2

    learn.fit_one_cycle(minutes=1, max_lr=0.1, callbacks=Faster())
    assert clock.now - 1000 == pytest.approx(60, abs=0.5)
    assert len(learn.recorder.losses) == pytest.approx((60 - first) / 0.2, abs=2)


@pytest.mark.parametrize("signal", [CancelEpoch, CancelBatch])
@pytest.mark.parametrize("trained", [0, 2])
def test_a_run_without_a_step_ends_in_time_too(timed, signal, trained):
    learn, clock = timed()

    class Refuse(Callback):
        def on_epoch_begin(self, learn):
            clock.now += 1
            if signal is CancelEpoch and learn.epoch >= trained:
                raise signal

        def on_batch_begin(self, learn):
            if learn.epoch >= trained:
                clock.now += 1
                raise signal

    learn.fit_one_cycle(minutes=1, max_lr=0.1, callbacks=Refuse())
    assert clock.now - 1000 == pytest.approx(60, abs=1.1)
    assert len(learn.recorder.losses) == 10 * trained


def test_the_next_fit_has_all_its_steps(timed):
    learn, _ = timed(step=1.0)
    learn.fit(minutes=0.2, lr=0.1)
    steps = len(learn.recorder.losses)
    learn.fit(2, 0.1)
    assert len(learn.recorder.losses) == steps + 20


def test_the_last_update_is_of_all_its_batches(timed):
    learn, _ = timed(step=1.0, accumulate=5)
    seen = []

    class Look(Callback):
        def on_step_end(self, learn):
            seen.append(learn.training_step.samples)

    learn.fit_one_cycle(2, 0.1, minutes=60, callbacks=Look())
    assert seen == [150] * 4


def test_an_average_of_the_last_part_begins_by_the_clock(timed):
    learn, _ = timed(step=1.0)
    learn.fit(minutes=1, lr=0.01, callbacks=SWA(start=0.75))
    assert ["swa_valid_loss" in row for row in learn.recorder.history] == [False] * 4 + [True] * 2


def test_a_cooldown_ends_with_the_minutes(timed):
    stopping = EarlyStopping(patience=3, min_delta=100.0, on_trigger="cooldown", cooldown=2.0)
    learn, _ = timed(step=1.0)
    learn.fit(minutes=1, lr=0.1, callbacks=stopping)
    assert len(learn.recorder.history) == 6
    assert learn.recorder.lrs[-1] == 0.0


@pytest.mark.parametrize("step", [0.9, 6.0])
def test_the_trunk_of_a_flat_part_has_seen_nothing_of_the_anneal(timed, step):
    learn, _ = timed(step=step)
    learn.fit_wsd(minutes=1, max_lr=0.1)
    assert learn.trunk.values["lr"] == [0.1]
    before = round(10 * learn.trunk.epoch)
    assert learn.recorder.lrs[before - 1] == 0.1
    assert learn.recorder.lrs[before] < 0.1


class Written(Checkpoint):
    """Counts what is written."""

    count = 0

    def save(self, learn, **how):
        super().save(learn, **how)
        self.count += 1


def test_the_end_is_saved_once(timed, tmp_path):
    learn, _ = timed(step=1.0)
    saver = Written(tmp_path / "run.pt")
    learn.fit(minutes=1, lr=0.1, callbacks=saver)
    assert saver.count == 1 + len(learn.recorder.history)


def test_nobody_is_told_of_a_million_epochs(timed, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn, _ = timed(step=1.0)
    seen = []

    class Look(Callback):
        def on_train_begin(self, learn):
            seen.append((learn.n_epochs, learn.total_steps))

    rest = [Look(), Halt(35)]
    with pytest.raises(KeyboardInterrupt):
        learn.fit(minutes=1, lr=0.1, callbacks=[Checkpoint(tmp_path / "run.pt"), *rest])
    assert seen == [(1, 10)]
    learn.resume(tmp_path / "run.pt", callbacks=[Look(), Halt(NEVER)])
    assert "at epoch 4, batch 1, step 30" in capsys.readouterr().out


def test_a_run_of_one_batch_an_epoch_estimates_its_epochs(digit_tensors, monkeypatch):
    x, y = digit_tensors
    seen = []

    class Look(Callback):
        def on_epoch_begin(self, learn):
            seen.append(learn.n_epochs)

    clock = Clock(monkeypatch, 6.0)
    learn = Learner(([(x, y)], None), plain(), callbacks=[clock, Look()])
    learn.fit(minutes=1, lr=0.01)
    assert seen == pytest.approx([1] + [10] * 9, abs=1)


def test_progress_never_falls(timed):
    learn, clock = timed(step=1.0, validation=5.0)
    seen = []

    class Look(Callback):
        def on_batch_begin(self, learn):
            seen.append(learn.progress)

        def on_batch_end(self, learn):
            seen.append(learn.progress)

        def on_epoch_end(self, learn):
            seen.append(learn.progress)
            clock.validation = 0.0  # so there is more time than it seemed

    learn.fit(minutes=1, lr=0.1, callbacks=Look())
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)


def test_of_epochs_and_minutes_the_bar_tells_both(timed, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "terminal")
    learn, _ = timed(step=1.0)
    learn.fit_one_cycle(2, 0.1, minutes=1)
    assert "epoch 1/2, 1 min" in capsys.readouterr().err


def test_the_bar_tells_the_minutes(timed, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "terminal")
    learn, _ = timed(step=1.0)
    learn.fit_one_cycle(minutes=1, max_lr=0.1)
    assert "epoch 1, 1 min" in capsys.readouterr().err


def test_with_a_real_clock(data):
    learn = Learner(data, mlp())
    before = time.monotonic()
    learn.fit_one_cycle(minutes=0.01, max_lr=0.01)
    assert time.monotonic() - before > 0.3
    assert learn.recorder.lrs[-1] == pytest.approx(0.01 / 25 / 1e4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda learn: learn.fit_one_cycle(), ValueError, "epochs or minutes"),
        (lambda learn: learn.fit(), ValueError, "epochs or minutes"),
        (lambda learn: learn.fit_wsd(minutes=0), ValueError, "minutes"),
        (lambda learn: learn.fit_wsd(minutes="1"), TypeError, "minutes"),
        (lambda learn: learn.fit_one_cycle(minutes=1, tot_epochs=3), ValueError, "minutes"),
        (
            lambda learn: learn.fit(
                minutes=1,
                schedule=TorchScheduler(lambda opt: torch.optim.lr_scheduler.ConstantLR(opt)),
            ),
            TypeError,
            "minutes",
        ),
    ],
)
def test_a_bad_argument_is_named(data, call, error, message):
    learn = Learner(data, mlp())
    with pytest.raises(error, match=message):
        call(learn)
    assert learn.recorder.history == []
    assert learn.budget is None
