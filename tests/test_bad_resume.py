"""Bad resuming: what differs, what was saved and what is here; learner and file are as before."""

import io
import random
import struct
import sys
import zipfile
from functools import partial

import pytest
import torch
from helpers import everything, mlp, plain, same, sgd, split_in_two
from torch import nn

from onecycle import (
    ActivationStats,
    Callback,
    Checkpoint,
    DataLoaders,
    Learner,
    ParamScheduler,
    TorchScheduler,
    schedules,
)


class HaltError(Exception):
    """Ends a run in the middle."""


class Stop(Callback):
    """Ends a run after some steps."""

    def __init__(self, after=17):
        self.after = after

    def on_step_end(self, learn):
        if learn.step == self.after:
            raise HaltError


def wide():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(64, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.2), nn.Linear(20, 10)
    )


def biased(bias):
    return nn.Sequential(nn.Linear(64, 16, bias=bias), nn.Linear(16, 10))


def cut(digit_tensors, n=300, batch_size=30, **options):
    x, y = digit_tensors
    valid = x[300:400], y[300:400]
    return DataLoaders.from_tensors(x[:n], y[:n], valid=valid, batch_size=batch_size, **options)


def _noisy(x, scale):
    return x * scale


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.pt"


@pytest.fixture
def halted(path, data):
    """A run of three epochs that ended in its second one, and is saved."""
    learn = Learner(data, mlp())
    with pytest.raises(HaltError):
        one_cycle(learn, path, Stop())
    return path


def one_cycle(learn, path, *callbacks, epochs=3, max_lr=1e-2, **options):
    saver = Checkpoint(path, every_steps=5, resume=True)
    learn.fit_one_cycle(epochs, max_lr, callbacks=[saver, *callbacks], **options)


def unchanged(call, kind, message, learn, folder):
    """Check that `call` raises and changes neither the learner nor a file."""
    before, files = everything(learn), contents(folder)
    with pytest.raises(kind, match=message) as caught:
        call()
    assert same(everything(learn), before)
    assert contents(folder) == files
    assert not learn.loop.running
    return caught.value


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# ---- another learner -----------------------------------------------------------------------------

HEAD = "holds an unfinished run, and this one is another. "
LEARNERS = [
    (
        r"model: '0.weight' is \(20, 64\) in the model and \(16, 64\) in the file",
        lambda d: Learner(cut(d), wide()),
    ),
    ("model: 'weight' is missing in the file", lambda d: Learner(cut(d), plain())),
    (
        "opt_func: the saved run is of the optimizer AdamW, this learner has SGD",
        lambda d: Learner(cut(d), mlp(), opt_func=sgd),
    ),
    (
        r"opt_func: the saved run is of other parameter groups.* \[2, 4\].*here \[1, 3, 1, 1\]",
        lambda d: Learner(cut(d), mlp(), splitter=split_in_two),
    ),
    (
        "samples: the saved run has 300, this one 240",
        lambda d: Learner(cut(d, n=240), mlp()),
    ),
    (
        "batch_size: the saved run has 30, this one 60, of all processes together",
        lambda d: Learner(cut(d, batch_size=60), mlp()),
    ),
    (
        "steps_per_epoch: the saved run has 10, this one 4",
        lambda d: Learner(DataLoaders(cut(d).train, steps_per_epoch=4), mlp()),
    ),
    (
        "accumulate: the saved run has 1, this one 2",
        lambda d: Learner(cut(d), mlp(), accumulate=2),
    ),
    (
        "precision: the saved run has fp32, this one bf16",
        lambda d: Learner(cut(d), mlp(), precision="bf16"),
    ),
    ("clip: the saved run has None, this one 1.0", lambda d: Learner(cut(d), mlp(), clip=1)),
    (
        r"augment: the saved run has \[\], this one _noisy\(scale=2\)",
        lambda d: Learner(cut(d, augment=partial(_noisy, scale=2)), mlp()),
    ),
]


@pytest.mark.parametrize(("message", "make"), LEARNERS)
def test_another_learner(digit_tensors, halted, message, make):
    learn = make(digit_tensors)
    for way in (one_cycle, Learner.resume):
        call = partial(way, learn, halted)
        error = unchanged(call, ValueError, HEAD + message, learn, halted.parent)
        assert str(halted) in str(error)
        assert "Make this one the same" in str(error)


# ---- another plan --------------------------------------------------------------------------------


def saver(path):
    return Checkpoint(path, resume=True)


PLANS = [
    ("epochs: the saved run has 3, this one 5", partial(one_cycle, epochs=5)),
    ("max_lr: the saved run has 0.01, this one 0.001", partial(one_cycle, max_lr=None)),
    ("wd: the saved run has None, this one 0.1", partial(one_cycle, wd=0.1)),
    ("schedule: pct_start: the saved run has 0.3, this one 0.5", partial(one_cycle, pct_start=0.5)),
    (
        "schedule: div_factor: the saved run has 25.0, this one 10",
        partial(one_cycle, div_factor=10),
    ),
    ("schedule: final_div: the saved run has None, this one 10", partial(one_cycle, final_div=10)),
    ("schedule: warmup: the saved run has linear, this one cos", partial(one_cycle, warmup="cos")),
    (
        "schedule: three_phase: the saved run has False, this one True",
        partial(one_cycle, three_phase=True),
    ),
    (
        r"schedule: moms: the saved run has \[0.95, 0.85\], this one None",
        partial(one_cycle, moms=None),
    ),
    ("tot_epochs: the saved run has 3, this one 6", partial(one_cycle, tot_epochs=6)),
    (
        "start_epoch: the saved run has 0, this one 1",
        partial(one_cycle, start_epoch=1, tot_epochs=4),
    ),
    (
        "method: the saved run has fit_one_cycle, this one fit",
        lambda learn, path: learn.fit(3, 1e-2, callbacks=saver(path)),
    ),
    (
        "method: the saved run has fit_one_cycle, this one fit_wsd",
        lambda learn, path: learn.fit_wsd(3, 1e-2, callbacks=saver(path)),
    ),
]


@pytest.mark.parametrize(("message", "call"), PLANS)
def test_another_plan(data, halted, message, call):
    learn = Learner(data, mlp())
    unchanged(partial(call, learn, halted), ValueError, HEAD + message, learn, halted.parent)
    one_cycle(learn, halted, Stop(99))
    assert len(learn.recorder.losses) == 30


def own(first, saver_path, data):
    """A run of three epochs by a schedule, that ended in its second one."""
    with pytest.raises(HaltError):
        Learner(data, mlp()).fit(
            3, 1e-2, schedule=first, callbacks=[Stop(), Checkpoint(saver_path, every_steps=5)]
        )
    return saver_path


LINEAR = schedules.linear(1, 0)


def wsd(warmup):
    return schedules.wsd(warmup=warmup)


SCHEDULES = [
    ("end: the saved run has 0, this one 0.1", LINEAR, schedules.linear(1, 0.1)),
    ("the saved run has linear, this one cosine", LINEAR, schedules.cosine()),
    ("warmup: the saved run has 0.1, this one 0.2", *map(wsd, (0.1, 0.2))),
    ("the saved run has the function .*, this one the function", lambda p: 1 - p, lambda p: 1.0),
    ("the saved run has ParamScheduler, this one None", LINEAR, None),
    ("the saved run has None, this one ParamScheduler", None, LINEAR),
]


@pytest.mark.parametrize(("message", "first", "other"), SCHEDULES)
def test_another_schedule(data, path, message, first, other):
    own(first, path, data)
    learn = Learner(data, mlp())
    call = partial(learn.fit, 3, 1e-2, schedule=other, callbacks=saver(path))
    unchanged(call, ValueError, f"{HEAD}schedule: .*{message}", learn, path.parent)


@pytest.mark.parametrize(
    ("callback", "name"),
    [
        (ActivationStats, "ActivationStats"),
        (partial(ParamScheduler, {"wd": schedules.linear(0.1, 0)}), "ParamScheduler"),
        (partial(Stop, 99), "Stop"),
    ],
)
@pytest.mark.parametrize("way", ["fit", "resume"])
def test_a_callback_that_is_missing(data, path, callback, name, way):
    with pytest.raises(HaltError):
        one_cycle(Learner(data, mlp()), path, callback(), Stop())
    learn = Learner(data, mlp(), callbacks=[] if name == "Stop" else Stop(99))
    call = partial(one_cycle if way == "fit" else Learner.resume, learn, path)
    message = HEAD + rf"callbacks: .*{name}.* of the saved run is not here"
    unchanged(call, ValueError, message, learn, path.parent)


# ---- learn.resume --------------------------------------------------------------------------------


def damaged(path, how):
    """Damage a file and remove the older ones."""
    for older in path.parent.glob("run.pt.*"):
        older.unlink()
    content = path.read_bytes()
    path.write_bytes(how(content))


def flipped(content, place=0.5):
    # Within a record: between them there are bytes that nobody reads.
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        records = [info for info in file.infolist() if info.file_size]
    record = records[int(len(records) * place)]
    names, extra = struct.unpack_from("<HH", content, record.header_offset + 26)
    at = record.header_offset + 30 + names + extra + record.file_size // 2
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "garbage": lambda content: random.Random(1).randbytes(5000),
    "text": lambda content: b"not a checkpoint",
    "a flipped bit": flipped,
    "a bit flipped early": partial(flipped, place=0.2),
    "a bit flipped late": partial(flipped, place=0.8),
}


@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file(data, halted, how):
    damaged(halted, how)
    learn = Learner(data, mlp(), callbacks=Stop(99))
    message = r"path: .*run\.pt' cannot be read as a checkpoint, it is damaged"
    for way in (one_cycle, Learner.resume, Learner.load):
        unchanged(partial(way, learn, halted), ValueError, message, learn, halted.parent)


@pytest.mark.parametrize("way", [one_cycle, Learner.resume])
def test_a_damaged_file_with_an_older_one(data, halted, way):
    halted.write_bytes(flipped(halted.read_bytes()))
    learn = Learner(data, mlp(), callbacks=Stop(99))
    with pytest.warns(UserWarning, match=r"run\.pt' cannot be read.*; going back to .*run\.pt\.1"):
        way(learn, halted)
    assert len(learn.recorder.losses) == 30


@pytest.mark.parametrize("way", [Learner.resume, Learner.load])
@pytest.mark.parametrize("name", ["nothing.pt", "no/folder.pt"])
def test_no_file(learn, tmp_path, way, name):
    call = partial(way, learn, tmp_path / name)
    error = unchanged(call, FileNotFoundError, "path: there is no file", learn, tmp_path)
    assert str(tmp_path / name) in str(error)


@pytest.mark.parametrize("way", [Learner.resume, Learner.load, Learner.save])
def test_a_folder_is_no_file(learn, tmp_path, way):
    message = f"^path: {str(tmp_path)!r} is a folder, give the name of a file"
    unchanged(partial(way, learn, tmp_path), IsADirectoryError, message, learn, tmp_path)


@pytest.mark.parametrize("place", [".", "folder/"])
def test_a_folder_is_refused_when_the_checkpoint_is_made(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match=r"^path: .* is a folder, give the name"):
        Checkpoint(place)


def test_a_finished_run(data, path):
    one_cycle(Learner(data, mlp()), path, epochs=1)
    learn = Learner(data, mlp())
    message = r"path: the run in '.*run\.pt' is finished; learn.load takes its model"
    unchanged(partial(learn.resume, path), ValueError, message, learn, path.parent)
    learn.load(path)


@pytest.mark.parametrize("way", [one_cycle, Learner.resume])
def test_a_file_of_save(learn, path, way):
    learn.save(path)
    message = r"path: '.*run\.pt' holds a model and no run: it is of Learner.save"
    unchanged(partial(way, learn, path), ValueError, message, learn, path.parent)


@pytest.mark.parametrize("state", [{}, {"format": 2}, [1], {"model": {}, "optimizer": {}}], ids=str)
def test_a_file_of_others(learn, path, state):
    torch.save(state, path)
    message = "path: .* is not a file that Learner.save wrote"
    unchanged(partial(learn.resume, path), ValueError, message, learn, path.parent)


SPECIAL = [
    ("<lambda> is a function of your own", {"schedule": lambda p: 1 - p}),
    (
        "<lambda> is a function of your own",
        {"schedule": schedules.join(lambda p: p, schedules.linear(), at=[0.5])},
    ),
    (
        "no file can hold a TorchScheduler",
        {"schedule": TorchScheduler(lambda opt: torch.optim.lr_scheduler.StepLR(opt, 5))},
    ),
]


@pytest.mark.parametrize(("message", "options"), SPECIAL)
def test_a_schedule_that_no_file_can_hold(data, path, message, options):
    with pytest.raises(HaltError):
        Learner(data, mlp()).fit(3, 1e-2, callbacks=[saver(path), Stop()], **options)
    learn = Learner(data, mlp())
    message = (
        rf"path: .*run\.pt': schedule: .*{message}.*; call the same fit again, with Checkpoint"
    )
    unchanged(
        partial(learn.resume, path, callbacks=Stop(99)), ValueError, message, learn, path.parent
    )


def test_two_that_are_to_resume(learn, tmp_path):
    savers = [Checkpoint(tmp_path / name, resume=True) for name in "ab"]
    message = "callbacks: one Checkpoint only can have resume=True"
    unchanged(partial(learn.fit, 1, callbacks=savers), ValueError, message, learn, tmp_path)


# ---- files that cannot be written ----------------------------------------------------------------


def blocked(tmp_path):
    """A place where nothing can be written, not even by root: its folder is a file."""
    (tmp_path / "file").write_text("here already")
    return tmp_path / "file" / "run.pt"


def started(call, kind, message, learn, folder):
    """As `unchanged`, but for the counters of a fit that has begun."""
    before, files = everything(learn), contents(folder)
    with pytest.raises(kind, match=message) as caught:
        call()
    assert same({**everything(learn), "counters": 0}, {**before, "counters": 0})
    assert contents(folder) == files
    return caught.value


@pytest.mark.parametrize("rule", [{}, {"every_steps": 3, "keep": 5}], ids=str)
def test_a_checkpoint_that_cannot_be_written(learn, tmp_path, rule):
    path = blocked(tmp_path)
    call = partial(learn.fit_one_cycle, 2, 1e-2, callbacks=Checkpoint(path, **rule))
    error = started(call, OSError, "checkpoint .* of step 0 was not written", learn, tmp_path)
    assert str(path) in str(error)
    learn.fit(1)
    assert len(learn.recorder.losses) == 10


@pytest.mark.parametrize(("rule", "count"), [({}, 3), ({"every_steps": 5}, 7)], ids=str)
def test_a_checkpoint_that_cannot_be_written_may_warn(learn, tmp_path, rule, count):
    path = blocked(tmp_path)
    saver = Checkpoint(path, on_error="warn", **rule)
    with pytest.warns(UserWarning, match=r"run\.pt' of step \d+ was not written.*goes on") as told:
        learn.fit(2, callbacks=saver)
    assert len(learn.recorder.losses) == 20
    steps = [str(one.message).split("of step ")[1].split()[0] for one in told]
    assert len(steps) == count
    assert (steps[0], steps[-1]) == ("0", "20")


@pytest.mark.parametrize("way", [Learner.save, Learner.report])
@pytest.mark.parametrize("name", ["run.pt", "deep/run.pt"])
def test_a_place_where_nothing_can_be_written_is_named_whole(data, tmp_path, way, name):
    learn = Learner(data, plain())
    learn.fit(1)
    path = blocked(tmp_path).parent / name
    message = f"^path: {str(path)!r} cannot be written"
    unchanged(partial(way, learn, path), OSError, message, learn, tmp_path)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_folder_that_goes_away(learn, tmp_path, place):
    class Removes(Callback):
        def on_step_end(self, learn):
            if learn.step == {"first": 1, "middle": 15, "last": 20}[place]:
                path.unlink()
                (tmp_path / "run").rmdir()
                (tmp_path / "run").write_text("a file")

    path = tmp_path / "run" / "run.pt"
    steps = {"first": 10, "middle": 20, "last": 20}[place]
    with pytest.raises(OSError, match=f"of step {steps} was not written"):
        learn.fit(2, callbacks=[Checkpoint(path, keep=1), Removes()])
    assert not learn.loop.running
    assert len(learn.recorder.losses) == steps
    learn.fit(1)


class Keeps(Callback):
    """Has something in its state."""

    def __init__(self, value, when=0):
        self.value, self.when, self.step = value, when, 0

    def on_step_end(self, learn):
        self.step = learn.step

    def state_dict(self):
        return {"notes": [self.value if self.step >= self.when else 0]}


UNSAFE = [object(), print, {1, 2}, lambda: 0, 1 + 2j, b"bytes"]


@pytest.mark.parametrize("value", UNSAFE, ids=lambda value: type(value).__name__)
def test_a_state_that_no_file_can_hold(learn, tmp_path, value):
    call = partial(learn.fit, 1, callbacks=[Checkpoint(tmp_path / "run.pt"), Keeps(value)])
    kind = type(value).__name__
    message = rf"\['notes'\]\[0\] is a {kind}: a file holds tensors"
    started(call, TypeError, message, learn, tmp_path)
    learn.fit(1)


def test_a_state_that_no_file_can_hold_later(learn, tmp_path):
    callbacks = [Checkpoint(tmp_path / "run.pt", every_steps=5), Keeps(object(), when=7)]
    with pytest.raises(TypeError, match=r"\['notes'\]\[0\] is a object"):
        learn.fit(1, callbacks=callbacks)
    assert len(learn.recorder.losses) == 10
    learn.load(tmp_path / "run.pt")


class BrokenState(Callback):
    """Cannot say its state, or not take it back."""

    def __init__(self, method):
        setattr(self, method, self.fail)

    def fail(self, *_):
        raise ZeroDivisionError("by design")


def test_a_state_that_raises(learn, tmp_path):
    call = partial(
        learn.fit, 1, callbacks=[Checkpoint(tmp_path / "a.pt"), BrokenState("state_dict")]
    )
    started(call, ZeroDivisionError, "by design", learn, tmp_path)


def test_the_callback_whose_state_no_file_can_hold_is_named(learn, tmp_path):
    call = partial(learn.fit, 1, callbacks=[Checkpoint(tmp_path / "run.pt"), Keeps(object())])
    started(call, TypeError, "Keeps", learn, tmp_path)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no notes")
@pytest.mark.parametrize("method", ["state_dict", "load_state_dict"])
def test_the_callback_whose_state_raises_is_named(data, path, method):
    with pytest.raises(HaltError):
        one_cycle(Learner(data, mlp()), path, Stop(), Keeps(1))
    broken = type("Keeps", (BrokenState,), {})(method)
    with pytest.raises(ZeroDivisionError) as caught:
        one_cycle(Learner(data, mlp()), path, Stop(99), broken)
    assert f"callback Keeps in {method}" in "".join(caught.value.__notes__)


def test_two_checkpoints_in_one_place(learn, tmp_path):
    savers = [Checkpoint(tmp_path / "run.pt"), Checkpoint(tmp_path / "run.pt", keep=5)]
    message = "callbacks: .*run.pt"
    started(partial(learn.fit, 1, callbacks=savers), ValueError, message, learn, tmp_path)
