"""What one of several processes decides or suffers ends all of them, at one step, and is named."""

import os
import random
import signal
import time

import processes
import pytest
import torch
from torch import nn

from onecycle import (
    Callback,
    CancelBatch,
    CancelEpoch,
    CancelTrain,
    Checkpoint,
    DataLoaders,
    Learner,
    accuracy,
    distributed,
    launch,
)
from onecycle.distributed import PeerError

EPOCHS, STEPS, WHEN = 2, 4, 5
FROM = {"on_train_begin": 0, "on_epoch_begin": STEPS}
EVENTS = (
    *("on_train_begin", "on_epoch_begin", "on_batch_begin", "on_loss_begin", "on_backward_begin"),
    *("on_backward_end", "on_step_end", "on_batch_end", "on_validate_begin"),
    *("on_validate_batch_end", "on_validate_end", "on_epoch_end", "on_train_end"),
)


class At(Callback):
    """Does something on one rank, once, at an event, when enough steps are done."""

    def __init__(self, event, do, rank=1, step=WHEN):
        self.rank, self.do, self.when, self.done = rank, do, step, False
        setattr(self, event, self.happen)

    def happen(self, learn):
        if learn.world.rank == self.rank and learn.step >= self.when and not self.done:
            self.done = True
            self.do(learn)


def learner(rank, size=2, **options):
    torch.manual_seed(0)
    x = torch.randn(STEPS * 8 * size - 5, 10)
    y = (x[:, 0] > 0).long()
    data = DataLoaders.from_tensors(x, y, valid=(x[:37], y[:37]), batch_size=8)
    model = nn.Sequential(nn.Linear(10, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2))
    learn = Learner(data, model, metrics=[accuracy], **options)
    learn.display.bar = learn.display.table = False
    return learn


def outcome(learn, *callbacks):
    """What became of a fit: the step it ended at, the rows of its history, weights, the error."""
    error = None
    try:
        learn.fit_one_cycle(EPOCHS, 0.1, callbacks=callbacks)
    except BaseException as raised:  # noqa: BLE001 - looked at by the tests
        error = raised
    weights = torch.cat([value.flatten() for value in learn.model.state_dict().values()])
    return learn.step, len(learn.recorder.history), weights, error


def raises(error):
    def do(learn):
        raise error

    return do


def each_signal(rank):
    ends = {}
    for event in EVENTS:
        for signal_ in (CancelBatch, CancelEpoch, CancelTrain):
            learn = learner(rank)
            at = At(event, raises(signal_()), step=FROM.get(event, WHEN))
            ends[event, signal_.__name__] = outcome(learn, at)
    return ends


def each_error(rank):
    ends = {}
    for event in EVENTS:
        learn = learner(rank)
        at = At(event, raises(KeyError("a fault")), step=FROM.get(event, WHEN))
        ends[event] = outcome(learn, at)
    ends["again"] = outcome(learner(rank))
    return ends


@pytest.fixture(scope="module")
def after_signals():
    return processes.run(each_signal, 2)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("signal_", ["CancelBatch", "CancelEpoch", "CancelTrain"])
def test_a_signal_of_one_process_holds_for_all(after_signals, event, signal_):
    one, other = (end.value[event, signal_] for end in after_signals)
    assert one[3] is other[3] is None
    assert one[:2] == other[:2]
    assert torch.equal(one[2], other[2])


@pytest.fixture(scope="module")
def after_errors():
    return processes.run(each_error, 2)


@pytest.mark.parametrize("event", EVENTS)
def test_an_error_of_one_process_ends_all_at_one_step(after_errors, event):
    one, other = (end.value[event] for end in after_errors)
    assert isinstance(other[3], KeyError)
    assert isinstance(one[3], PeerError)
    assert "rank 1 has failed: KeyError: 'a fault'" in str(one[3])
    assert one[0] == other[0]


def test_after_an_error_of_one_process_all_can_train_again(after_errors):
    steps = {end.value["again"][0] for end in after_errors}
    assert steps == {EPOCHS * STEPS}


class Fails(nn.Module):
    """Passes its input through; fails in its forward or backward pass on rank 1, from a step on."""

    def __init__(self, how):
        super().__init__()
        self.how, self.calls, self.rank = how, 0, int(os.environ["RANK"])

    def forward(self, x):
        self.calls += self.training
        now = self.rank == 1 and self.training and self.calls > WHEN
        if now and self.how == "forward":
            raise KeyError("in the forward pass")
        if now and self.how == "backward":
            x.register_hook(raises(KeyError("in the backward pass")))
        return x * float("nan") if now and self.how == "nan" else x


def failing_module(rank, how):
    learn = learner(rank)
    learn.model = nn.Sequential(*learn.model, Fails(how))
    learn = Learner(learn.data, learn.model)
    learn.display.table = learn.display.bar = False
    began = time.monotonic()
    return *outcome(learn), time.monotonic() - began


@pytest.mark.parametrize("how", ["forward", "backward"])
def test_an_error_in_the_model_of_one_process_ends_all(how):
    one, other = processes.run(failing_module, 2, how)
    assert f"rank 1 has failed: KeyError: 'in the {how} pass'" in str(one.value[3])
    assert isinstance(other.value[3], KeyError)
    assert one.value[0] == other.value[0] == WHEN
    assert max(one.value[4], other.value[4]) < 15


def test_nan_on_one_rank_stops_all_before_the_step():
    ends = processes.run(failing_module, 2, "nan")
    for end in ends:
        assert isinstance(end.value[3], FloatingPointError)
        assert f"the loss is nan on rank 1 at step {WHEN + 1}" in str(end.value[3])
        assert end.value[0] == WHEN
    assert torch.equal(ends[0].value[2], ends[1].value[2])


def as_on_an_accelerator(rank):
    """Whether a fit as on an accelerator has the weights of one on the CPU, what ends one there."""
    ends = [outcome(learner(rank))]
    for how in ("nothing", "nan"):
        learn = learner(rank)
        model = nn.Sequential(*learn.model, Fails(how))
        learn = Learner(learn.data, model)
        learn.training_step.device = torch.device("meta")  # anything but a CPU
        learn.display.table = learn.display.bar = False
        ends.append(outcome(learn))
    return torch.allclose(ends[0][2], ends[1][2]), ends[2]


def own_devices(rank):
    """What becomes of device= where there are two GPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "set_device", lambda number: None)
        return [str(distributed.own_device(device)) for device in (None, "cuda", "cuda:1", "cpu")]


def test_each_of_three_processes_has_a_gpu_of_its_own_while_there_are_some():
    found = [end.value for end in processes.run(own_devices, 3)]
    assert [own[:2] for own in found] == [[f"cuda:{number}"] * 2 for number in (0, 1, 0)]
    assert all(own[2:] == ["cuda:1", "cpu"] for own in found)


def test_processes_with_an_accelerator_each_do_the_same():
    """Their way, on the CPU: the joint loss tells what is not finite, and not the meeting."""
    ends = processes.run(as_on_an_accelerator, 2)
    for end in ends:
        alike, (steps, _, _, error) = end.value
        assert alike
        assert steps == WHEN
        assert f"the loss is nan at step {WHEN + 1}" in str(error)


def killed(rank, event, victim):
    learn = learner(rank, size=3)
    earlier = At("on_batch_begin", raises(KeyError("of an earlier fit")), rank=2, step=0)
    outcome(learn, earlier)
    kill = At(event, lambda learn: os.kill(os.getpid(), signal.SIGKILL), rank=victim)
    began = time.monotonic()
    return *outcome(learn, kill), time.monotonic() - began


@pytest.mark.parametrize(("event", "victim"), [("on_loss_begin", 1), ("on_validate_begin", 0)])
def test_when_one_process_is_killed_the_others_end_and_name_it(event, victim):
    ends = processes.run(killed, 3, event, victim)
    assert ends[victim].code == -signal.SIGKILL
    left = [end for rank, end in enumerate(ends) if rank != victim]
    for end in left:
        assert f"rank {victim} is gone" in str(end.value[3])
        assert end.value[4] < 15
    assert left[0].value[0] == left[1].value[0]


class SlowCheckpoint(Checkpoint):
    """Takes its time to write, after it has everything of the other processes."""

    written = 0.0

    def rest(self, learn, *, stopping, **place):
        super().rest(learn, stopping=stopping, **place)
        if stopping and learn.world.rank == 0:
            time.sleep(0.5)
            self.written = time.time()


def interrupted(rank, number, path):
    """Interrupt the end of an epoch whose validation has one sample for all, and a step."""
    learn = learner(rank)
    learn.data = learn.data.train, [tuple(t[:1] for t in learn.data.valid.tensors)]
    send = At("on_batch_end", lambda learn: os.kill(os.getpid(), number), step=STEPS)
    of_epoch = outcome(learn, send)
    learn, saver = learner(rank), SlowCheckpoint(path)
    distributed.LAST = 0.1
    send = At("on_backward_begin", lambda learn: os.kill(os.getpid(), number))
    return *outcome(learn, send, saver), time.time(), saver.written, of_epoch


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_of_the_system_to_one_process_stops_all_and_saves(tmp_path, number, error):
    ends = processes.run(interrupted, 2, number, tmp_path / "run.pt")
    for end in ends:
        assert isinstance(end.value[3], error)
        # The step that was under way is done, or the one after it, where the others hear of it.
        assert end.value[0] == ends[0].value[0] in (WHEN + 1, WHEN + 2)
        assert end.value[4] > ends[0].value[5] > 0.0  # nobody ends before it is saved
        assert isinstance(end.value[6][3], error)
        assert end.value[6][:2] == (STEPS, 0)
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    assert saved["run"]["place"]["step"] == ends[0].value[0]


def unlike(rank, what):
    learn = learner(rank)
    if what == "length" and rank == 1:
        learn.data = DataLoaders(list(learn.data.train)[:-1], sharded=True)
    elif what == "length":
        learn.data = DataLoaders(list(learn.data.train), sharded=True)
    elif rank == 1:
        learn.validate()
        return outcome(learn)
    return outcome(learn)


@pytest.mark.parametrize("what", ["length", "calls"])
def test_processes_that_take_other_ways_are_told_and_do_not_hang(what):
    for end in processes.run(unlike, 2, what):
        error = end.error or end.value[3]
        assert "rank" in str(error)


def faulty_metric(rank):
    learn = learner(rank)
    try:
        learn.metrics = {"faulty": fails_on_rank_1}
        learn.validate()
    except Exception as error:  # noqa: BLE001 - looked at by the test
        return error


def fails_on_rank_1(pred, target):
    if os.environ["RANK"] == "1":
        raise KeyError("a fault")
    return 0.0


def test_an_error_in_a_validation_of_one_process_reaches_the_others():
    one, other = processes.run(faulty_metric, 2)
    assert "rank 1 has failed" in str(one.value)
    assert "KeyError" in str(other.value)


KINDS = {
    "error": raises(KeyError("a fault")),
    "exit": lambda learn: os._exit(3),
    "kill": lambda learn: os.kill(os.getpid(), signal.SIGKILL),
    "interrupt": lambda learn: os.kill(os.getpid(), signal.SIGINT),
    "terminate": lambda learn: os.kill(os.getpid(), signal.SIGTERM),
    "stop": raises(CancelTrain()),
    "skip": raises(CancelEpoch()),
}


def fault(seed):
    """Return what happens, to which rank of how many, at which event after how many steps."""
    draw = random.Random(seed)
    nproc = draw.choice([2, 2, 3, 4])
    event = draw.choice(EVENTS[1:-1])
    return draw.choice(list(KINDS)), draw.randrange(nproc), nproc, event, draw.randint(0, 7)


def faulty(rank, kind, victim, nproc, event, step, path):
    def do(learn):
        path.write_text(str(time.time()))
        KINDS[kind](learn)

    learn = learner(rank, size=nproc)
    ended = outcome(
        learn, At(event, do, rank=victim, step=step), Checkpoint(path.with_suffix(".pt"))
    )
    return *ended, time.time()


def check_fault(seed, path):
    kind, victim, nproc, event, step = fault(seed)
    ends = processes.run(faulty, nproc, kind, victim, nproc, event, step, path)
    assert not any(end.hung for end in ends)
    left = [end.value for rank, end in enumerate(ends) if rank != victim or end.value]
    assert len({end[0] for end in left}) == 1
    happened = path.exists()
    for rank, end in enumerate(ends):
        if happened and rank != victim and kind in ("error", "exit", "kill"):
            assert f"rank {victim} " in str(end.value[3])
        if happened and end.value and kind not in ("skip", "stop"):
            assert end.value[4] - float(path.read_text()) < 15
    saved = torch.load(path.with_suffix(".pt"), weights_only=True)
    assert saved["run"]["place"]["step"] <= left[0][0]


@pytest.mark.parametrize("seed", range(6))
def test_random_faults(tmp_path, seed):
    check_fault(seed, tmp_path / "fault")


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(100, 200))
def test_a_hundred_random_faults(tmp_path, seed):
    check_fault(seed, tmp_path / "fault")


def fails_on_its_own(where):
    if where == "before" and os.environ["RANK"] == "1":
        raise KeyError("a fault before the fit")
    learn = learner(int(os.environ["RANK"]))
    learn.fit_one_cycle(EPOCHS, 0.1, callbacks=At("on_batch_end", raises(KeyError("in the fit"))))


@pytest.mark.parametrize(("where", "text"), [("before", "before the fit"), ("fit", "in the fit")])
def test_launch_tells_the_error_that_was_the_first(where, text):
    with pytest.raises(RuntimeError, match=f"rank 1 has failed: KeyError: .*{text}"):
        launch(fails_on_its_own, 2, where)


def test_a_learner_from_before_the_processes_is_refused(learn):
    with pytest.raises(RuntimeError, match="made before the processes"):
        launch(learn.fit, 2, 1)
