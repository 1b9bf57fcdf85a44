"""Checkpoint files: when they are written, what they hold, what becomes of damaged ones."""

import math
import random
import warnings

import numpy as np
import pytest
import torch
from helpers import Halt, Log, everything, mlp, plain, same, weights
from torch import nn

from onecycle import Callback, Checkpoint, Learner, accuracy, checkpoint
from onecycle.signals import CancelTrain


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


def broken_off(data, path, at=14, **rules):
    """A run of 3 epochs of 10 steps that was broken off."""
    learn = Learner(data, mlp())
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(3, 0.01, callbacks=[Checkpoint(path, **rules), Halt(at)])
    return learn


def place(path):
    found, _ = checkpoint.newest(path)
    return found[1]["run"]["place"]["step"]


# ---- when --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "step"),
    [
        ({}, 20),
        ({"every_epochs": 2}, 20),
        ({"every_epochs": None}, 0),
        ({"every_epochs": None, "every_steps": 7}, 21),
        ({"every_epochs": None, "every_minutes": 1e-9}, 24),
        ({"every_epochs": None, "every_minutes": 1e9}, 0),
    ],
)
def test_it_saves_by_its_rules(data, path, rules, step):
    broken_off(data, path, 25, **rules)
    assert place(path) == step


def test_accumulated_batches_count_steps_once(data, path):
    class Saves(Checkpoint):
        seen = ()

        def save(self, learn, **place):
            self.seen = (*self.seen, learn.step)
            super().save(learn, **place)

    saver = Saves(path, every_epochs=None, every_steps=2)
    Learner(data, mlp(), accumulate=3).fit(1, callbacks=saver)
    assert saver.seen == (0, 2, 4, 4)


def test_the_last_one_is_the_finished_model_with_what_its_callbacks_did_at_the_end(data, path):
    class Zero(Callback):
        def on_train_end(self, learn):
            nn.init.zeros_(learn.model[0].weight)

    learn = Learner(data, mlp())
    learn.fit_one_cycle(1, 0.01, callbacks=[Checkpoint(path), Zero()])
    other = Learner(data, mlp()).load(path)
    assert same(other.model.state_dict(), learn.model.state_dict())
    assert not other.model[0].weight.any()


def test_a_cancelled_run_is_a_finished_one(data, path):
    log = Log({("on_step_end", 4): CancelTrain()})
    Learner(data, mlp()).fit(2, callbacks=[Checkpoint(path), log])
    assert checkpoint.load(path)["run"]["finished"]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_it_keeps_so_many(data, tmp_path, keep):
    path = tmp_path / "runs" / "run.pt"
    Learner(data, mlp()).fit(2, callbacks=Checkpoint(path, every_steps=1, keep=keep))
    older = [f"run.pt.{i}" for i in range(1, keep)]
    assert sorted(file.name for file in path.parent.iterdir()) == ["run.pt", *older]
    assert len(
        {checkpoint.load(file)["run"]["place"]["step"] for file in path.parent.iterdir()}
    ) > (keep - 2)


def test_several_write_files_of_their_own(data, tmp_path):
    savers = [Checkpoint(tmp_path / "a.pt"), Checkpoint(tmp_path / "b.pt", every_steps=3)]
    Learner(data, mlp(), callbacks=savers[:1]).fit(1, callbacks=savers[1:])
    assert (tmp_path / "a.pt").exists()
    assert (tmp_path / "b.pt").exists()


def test_it_changes_nothing_and_lr_find_and_validate_write_nothing(data, path):
    runs = []
    for callbacks in ([], [Checkpoint(path, every_steps=1)]):
        learn = Learner(data, mlp(), metrics=[accuracy], callbacks=callbacks)
        learn.lr_find(num_it=20)
        learn.validate()
        assert not path.exists()
        learn.fit_one_cycle(2, 0.01)
        runs.append(weights(learn))
    assert same(*runs)


# ---- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path_type", [str, lambda path: path])
def test_resume_goes_on_and_says_so(data, path, path_type, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    broken_off(data, path, every_steps=1)
    learn = Learner(data, mlp())
    learn.resume(path_type(path), callbacks=Halt(99))
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("resumed"))
    assert f"from {path} at epoch 2 of 3, batch 4, step 13: model, optimizer, generators" in line
    assert len(learn.recorder.losses) == 30
    assert checkpoint.load(path)["run"]["finished"]


def test_the_same_cell_again_goes_on_or_begins(data, path):
    whole = Learner(data, mlp())
    whole.fit_one_cycle(3, 0.01)
    for at, steps in ((5, 4), (17, 16), (99, 30), (5, 4)):
        learn = Learner(data, mlp())
        callbacks = [Checkpoint(path, every_steps=1, resume=True), Halt(at)]
        try:
            learn.fit_one_cycle(3, 0.01, callbacks=callbacks)
        except KeyboardInterrupt:
            assert place(path) == steps
        else:
            assert at == 99
            assert same(weights(learn), weights(whole))


def test_in_one_process_the_same_learner_goes_on(data, path):
    whole = Learner(data, mlp())
    whole.fit_one_cycle(3, 0.01)
    learn = broken_off(data, path, every_steps=1)
    learn.resume(path, callbacks=Halt(99))
    assert same(weights(learn), weights(whole))
    assert learn.recorder.losses.tolist() == whole.recorder.losses.tolist()
    assert len(learn.recorder.fits) == 1


def test_two_fits_into_one_file_are_gone_through_again(data, path):
    def script(learn, at):
        callbacks = [Checkpoint(path, every_steps=1, resume=True), Halt(at)]
        learn.fit_one_cycle(1, 0.02, callbacks=callbacks)
        learn.fit_one_cycle(2, 0.01, callbacks=callbacks)

    whole = Learner(data, mlp())
    whole.fit_one_cycle(1, 0.02)
    whole.fit_one_cycle(2, 0.01)
    with pytest.raises(KeyboardInterrupt):
        script(Learner(data, mlp()), 13)
    learn = Learner(data, mlp())
    script(learn, 99)
    assert same(weights(learn), weights(whole))
    assert len(learn.recorder.fits) == 2


def test_fine_tune_goes_on_in_its_second_part(data, path):
    def split(model):
        return [[*model[0].parameters(), *model[1].parameters()], [*model[4].parameters()]]

    def tuned(at, **rules):
        learn = Learner(data, mlp(), splitter=split)
        callbacks = [Halt(at), *([Checkpoint(path, **rules)] if rules else [])]
        learn.fine_tune(2, 0.01, callbacks=callbacks)
        return weights(learn)

    whole = tuned(99)
    with pytest.raises(KeyboardInterrupt):
        tuned(15, every_steps=1, resume=True)
    assert same(tuned(99, every_steps=1, resume=True), whole)


def test_an_interrupted_validation_is_done_again(data, path):
    import signal

    class Interrupt(Callback):
        def on_validate_batch_end(self, learn):
            if learn.epoch == 1:
                signal.raise_signal(signal.SIGINT)

    whole = Learner(data, mlp())
    whole.fit_one_cycle(3, 0.01)
    learn = Learner(data, mlp())
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(3, 0.01, callbacks=[Checkpoint(path), Interrupt()])
    assert len(learn.recorder.history) == 1
    again = Learner(data, mlp())
    again.resume(path, callbacks=type("Interrupt", (Callback,), {})())
    assert same(weights(again), weights(whole))


def test_a_loader_that_cannot_be_positioned_goes_on_at_the_epoch(data, path, monkeypatch, capsys):
    class Plain:
        def __iter__(self):
            yield from data.train

        def __len__(self):
            return 10

    def learner():
        return Learner((Plain(), data.valid), mlp())

    whole = learner()
    whole.fit_one_cycle(3, 0.01)
    with pytest.raises(KeyboardInterrupt):
        learner().fit_one_cycle(3, 0.01, callbacks=[Checkpoint(path, every_steps=1), Halt(14)])
    assert place(path) == 10
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    learn = learner()
    learn.resume(path, callbacks=Halt(99))
    assert "at epoch 2 of 3, batch 1, step 10" in capsys.readouterr().out
    assert same(weights(learn), weights(whole))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata, with torch 2.15
def test_torchdata_s_loader_is_used_as_it_is(digit_tensors, path):
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    x, y = digit_tensors
    samples = torch.utils.data.TensorDataset(x[:300], y[:300])

    def learner():
        torch.manual_seed(1)
        loader = stateful.StatefulDataLoader(samples, 30, shuffle=True)
        return Learner((loader, None), mlp())

    whole = learner()
    whole.fit_one_cycle(3, 0.01)
    with pytest.raises(KeyboardInterrupt):
        learner().fit_one_cycle(3, 0.01, callbacks=[Checkpoint(path, every_steps=1), Halt(14)])
    learn = learner()
    torch.manual_seed(5)
    learn.resume(path, callbacks=Halt(99))
    assert same(weights(learn), weights(whole))


def test_an_unsaved_buffer_a_mode_and_what_is_trained_come_back(data, path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()
            self.register_buffer("seen", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.seen += 1
            return self.net(x)

    class Change(Callback):
        def on_epoch_begin(self, learn):
            learn.model.net[3].eval()
            learn.model.net[0].weight.requires_grad_(learn.epoch == 0)

    def run(at):
        learn = Learner((data.train, None), Model(), callbacks=[Change()])
        learn.fit_one_cycle(2, 0.01, callbacks=[Checkpoint(path, every_steps=1), Halt(at)])

    with pytest.raises(KeyboardInterrupt):
        run(15)
    modes = []

    class Look(Callback):
        def on_batch_begin(self, learn):
            modes.append(learn.model.net[3].training)

    Look.__name__ = "Change"
    learn = Learner((data.train, None), Model(), callbacks=[Look()])
    learn.resume(path, callbacks=Halt(99))
    assert modes == [False] * 6
    assert learn.model.seen == 20
    assert not learn.model.net[0].weight.requires_grad


def test_resume_takes_the_run_that_was_going_on_though_an_earlier_fit_had_its_plan(data, path):
    class Second(Halt):
        def on_train_begin(self, learn):
            self.at = 5 if len(learn.recorder.fits) == 2 else 99

    whole = Learner(data, mlp())
    whole.fit(1, 0.01)
    whole.fit(1, 0.01)
    learn = Learner(data, mlp())
    saver = Checkpoint(path, every_steps=1)
    learn.fit(1, 0.01, callbacks=[saver, Second(0)])
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, 0.01, callbacks=[saver, Second(0)])
    again = Learner(data, mlp())
    again.resume(path, callbacks=type("Second", (Callback,), {})())
    assert same(weights(again), weights(whole))
    assert len(again.recorder.history) == 2


def test_a_finished_run_of_another_time_is_set_aside(data, path, monkeypatch, capsys):
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    first = Learner(data, mlp())
    first.fit(1, 0.01, callbacks=Checkpoint(path))
    Learner(data, mlp()).fit(2, 0.02, callbacks=Checkpoint(path, resume=True))
    assert "the finished run there is now run.pt.finished" in capsys.readouterr().out
    kept = Learner(data, mlp()).load(path.with_name("run.pt.finished"))
    assert same(weights(kept)[0], weights(first)[0])


def test_an_unfinished_run_that_is_replaced_is_told(data, path, monkeypatch, capsys):
    broken_off(data, path, every_steps=1)
    monkeypatch.setenv("ONECYCLE_PROGRESS", "log")
    Learner(data, mlp()).fit(1, callbacks=Checkpoint(path))
    assert "the unfinished run there, of step 13, is being replaced" in capsys.readouterr().out


def test_a_model_that_was_saved_is_not_replaced_by_a_run(data, path):
    learn = Learner(data, mlp())
    learn.save(path)
    with pytest.raises(ValueError, match="holds a model and no run"):
        learn.fit(1, callbacks=Checkpoint(path))


def test_what_a_hook_of_the_resumed_epoch_s_begin_sees_is_the_run(data, path):
    seen = []

    class Look(Callback):
        def on_epoch_begin(self, learn):
            seen.append((learn.step, len(learn.recorder.history)))

        def on_train_end(self, learn):
            seen.append((learn.epoch, "valid_loss" in learn.scores))

    broken_off(data, path, every_steps=1)
    Learner(data, mlp()).resume(path, callbacks=[Halt(99), Look()])
    assert seen == [(13, 1), (20, 2), (2, True)]


def test_a_loss_with_a_state_comes_back(data, path):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, pred, target):
            self.seen += self.training
            return nn.functional.cross_entropy(pred, target)

    learn = Learner(data, mlp(), Weighted())
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=[Checkpoint(path, every_steps=1), Halt(5)])
    again = Learner(data, mlp(), Weighted())
    again.resume(path, callbacks=Halt(99))
    whole = Learner(data, mlp(), Weighted())
    whole.fit(1)
    assert again.loss_func.seen == whole.loss_func.seen > 0


def test_two_callbacks_of_one_class_have_their_own_states(data, path):
    class Mark(Callback):
        def __init__(self, mark):
            self.mark = mark

        def state_dict(self):
            return {"mark": self.mark}

        def load_state_dict(self, state):
            self.mark = state["mark"]

    with pytest.raises(KeyboardInterrupt):
        Learner(data, mlp()).fit(1, callbacks=[Checkpoint(path), Mark("a"), Mark("b"), Halt(3)])
    marks = [Mark(""), Mark("")]
    Learner(data, mlp()).resume(path, callbacks=[*marks, Halt(99)])
    assert [mark.mark for mark in marks] == ["a", "b"]


def test_callbacks_count_an_interrupted_validation_once(data, path):
    import signal

    class Count(Callback):
        begun = batches = 0

        def on_validate_begin(self, learn):
            self.begun += 1

        def on_validate_batch_end(self, learn):
            self.batches += 1
            if self.begun == 1 and self.batches == 2 and not self.quiet:
                signal.raise_signal(signal.SIGINT)

        quiet = False

        def state_dict(self):
            return {"begun": self.begun, "batches": self.batches}

        def load_state_dict(self, state):
            self.begun, self.batches = state["begun"], state["batches"]

    with pytest.raises(KeyboardInterrupt):
        Learner(data, mlp()).fit(2, callbacks=[Checkpoint(path), Count()])
    again = Count()
    again.quiet = True
    Learner(data, mlp()).resume(path, callbacks=again)
    assert (again.begun, again.batches) == (2, 8)


def test_every_minutes_saves_once_in_that_time(data, path, monkeypatch):
    from onecycle.callbacks import saving

    class Saves(Checkpoint):
        count = 0

        def save(self, learn, **place):
            self.count += 1
            super().save(learn, **place)

    now = iter(range(10**6))
    monkeypatch.setattr(saving.time, "monotonic", lambda: float(next(now)))
    saver = Saves(path, every_epochs=None, every_minutes=5 / 60)
    Learner(data, mlp()).fit(2, callbacks=saver)
    assert 2 < saver.count < 12


# ---- damage ------------------------------------------------------------------------------------


def test_no_flipped_bit_goes_unnoticed(data, path):
    broken_off(data, path, every_steps=1)
    content = path.read_bytes()
    wanted = checkpoint.load(path)
    draw = random.Random(0)
    tail = range(8 * len(content) - 2000, 8 * len(content), 8)  # the directory of the archive
    for bit in [*(draw.randrange(8 * len(content)) for _ in range(300)), *tail]:
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoiled)
        try:
            found = checkpoint.load(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - most are refused, some are padding
        else:
            assert same(found, wanted)


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\0" * 99])
def test_a_damaged_file_falls_back_to_the_one_before(data, path, spoil):
    whole = Learner(data, mlp())
    whole.fit_one_cycle(3, 0.01)
    broken_off(data, path, every_steps=1)
    path.write_bytes(spoil(path.read_bytes()))
    learn = Learner(data, mlp())
    with pytest.warns(UserWarning, match=r"run\.pt.*damaged.*going back to .*run\.pt\.1"):
        learn.resume(path, callbacks=Halt(99))
    assert same(weights(learn), weights(whole))
    there = sorted(f.name for f in path.parent.iterdir())
    assert there == ["run.pt", "run.pt.1", "run.pt.damaged", "run.pt.trunk"]


def test_two_swapped_files_are_two_places_of_one_run(data, path):
    whole = Learner(data, mlp())
    whole.fit_one_cycle(3, 0.01)
    broken_off(data, path, every_steps=1)
    one, other = path.read_bytes(), (path.parent / "run.pt.1").read_bytes()
    path.write_bytes(other)
    (path.parent / "run.pt.1").write_bytes(one)
    learn = Learner(data, mlp())
    learn.resume(path, callbacks=Halt(99))
    assert same(weights(learn), weights(whole))


def test_a_file_without_checksums_is_not_trusted_though_torch_would(data, path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"format": 2, "model": {}, "optimizer": {}}, path)
        with pytest.raises(ValueError, match="checksum"):
            checkpoint.load(path)
        checkpoint.save(path, {"model": {}, "optimizer": {}})
    finally:
        torch.serialization.set_crc32_options(before)
    assert checkpoint.load(path)["model"] == {}


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the payload ran')",))


def test_no_way_to_load_runs_a_payload(data, path):
    torch.save({"format": 2, "model": {}, "optimizer": {}, "run": Payload()}, path)
    learn = Learner(data, plain())
    before = everything(learn)
    for load in (
        lambda: learn.load(path),
        lambda: learn.resume(path),
        lambda: learn.fit(1, callbacks=Checkpoint(path, resume=True)),
    ):
        with pytest.raises(ValueError, match="damaged or of another kind"):
            load()
    assert same(everything(learn), before)


def test_torch_alone_reads_it_safely(data, path):
    broken_off(data, path)
    assert torch.load(path, weights_only=True)["run"]["plan"]["method"] == "fit_one_cycle"


def test_a_file_of_the_first_format_is_still_loaded(data, path):
    learn = Learner(data, plain())
    learn.fit(1)
    old = {"class": "AdamW", "state": learn.opt.state_dict()}
    torch.save({"format": 1, "model": learn.model.state_dict(), "optimizer": old}, path)
    assert same(weights(Learner(data, plain(2)).load(path)), weights(learn))


# ---- writing fails -----------------------------------------------------------------------------


def test_a_failed_write_ends_the_run_after_the_other_callbacks(data, path):
    class Remove(Callback):
        def on_step_end(self, learn):
            if learn.step == 4:
                for file in path.parent.iterdir():
                    file.unlink()
                path.parent.rmdir()
                path.parent.touch()

    path = path.parent / "folder" / "run.pt"
    log = Log()
    learn = Learner(data, mlp(), callbacks=[Remove(), Checkpoint(path, every_steps=5), log])
    with pytest.raises(OSError, match=r"run\.pt.* of step 5 was not written"):
        learn.fit(1)
    assert log.events[-2:] == ["on_batch_end", "on_train_end"]
    assert len(learn.recorder.losses) == 5
    learn.callbacks = []
    learn.fit(1)


def test_with_on_error_warn_it_trains_on_and_says_so_each_time(data, path):
    (path.parent / "file").touch()
    path = path.parent / "file" / "run.pt"
    learn = Learner(data, mlp(), callbacks=[Checkpoint(path, every_steps=5, on_error="warn")])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        learn.fit(2)
    steps = [str(w.message).split(" of step ")[1].split()[0] for w in caught]
    assert steps == ["0", "5", "10", "15", "20", "20"]  # the last are of the step and of the end
    assert len(learn.recorder.losses) == 20
    assert all(math.isfinite(loss) for loss in learn.recorder.losses)


def test_states_with_arrays_and_numbers_of_numpy_are_saved(data, path):
    class Counts(Callback):
        counts = np.arange(3)

        def state_dict(self):
            return {"counts": self.counts, "mean": np.float64(0.5)}

        def load_state_dict(self, state):
            self.counts = state["counts"].numpy()

    with pytest.raises(KeyboardInterrupt):
        Learner(data, mlp()).fit(1, callbacks=[Checkpoint(path), Counts(), Halt(3)])
    again = Counts()
    again.counts = None
    Learner(data, mlp()).resume(path, callbacks=[again, Halt(99)])
    assert again.counts.tolist() == [0, 1, 2]
