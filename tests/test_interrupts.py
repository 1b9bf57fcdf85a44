"""Ctrl-C and SIGTERM: by a signal, from outside, in a real terminal and in a real kernel."""

import itertools
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from queue import Empty

import pytest
from helpers import Log, mlp, same, weights
from jupyter_client.manager import start_new_kernel
from runs import Case, begin, end_of, go_on, in_child

from onecycle import Callback, CancelTrain, Checkpoint, Learner, checkpoint, interrupts
from onecycle.callback import EVENTS

PATIENCE = 120  # seconds until a wait is given up; none of them takes long when all is well
HELD = (signal.SIGINT, signal.SIGTERM)
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither ptys nor process groups")


def handlers():
    return [signal.getsignal(number) for number in HELD]


@pytest.fixture(autouse=True)
def _usual_handlers():
    usual = handlers()
    yield
    for number, handler in zip(HELD, usual, strict=True):
        signal.signal(number, handler)


def until(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE} seconds for {what}"
        time.sleep(0.01)


class Press(Log):
    """Writes down every event; sends this process signals at the given occurrence of one."""

    def __init__(self, event, count=1, numbers=(signal.SIGINT,)):
        super().__init__()
        self.event, self.count, self.numbers = event, count, numbers

    def seen(self, event):
        super().seen(event)
        if event == self.event and self.events.count(event) == self.count:
            for number in self.numbers:
                signal.raise_signal(number)


def stopped_after(data, steps):
    """The weights of a run without signals, after so many steps."""

    class Stop(Callback):
        def on_batch_end(self, learn):
            if learn.step == steps:
                raise CancelTrain

    learn = Learner(data, mlp())
    learn.fit(3, 0.01, callbacks=Stop)
    return weights(learn)


# Event: the occurrence of it that Ctrl-C is pressed in; steps and rows that are there afterwards.
PLACES = {
    "on_train_begin": (1, 1, 0),
    "on_epoch_begin": (2, 11, 1),
    **dict.fromkeys([e for e in EVENTS if "batch" in e or "step" in e], (13, 13, 1)),
    **dict.fromkeys(["on_loss_begin", "on_backward_begin", "on_backward_end"], (13, 13, 1)),
    "on_validate_begin": (2, 20, 1),
    "on_validate_batch_end": (6, 20, 1),
    "on_validate_end": (2, 20, 2),
    "on_epoch_end": (2, 20, 2),
}


@pytest.mark.parametrize("event", [event for event in EVENTS if event != "on_train_end"])
def test_ctrl_c_ends_after_the_current_step(data, event, tmp_path):
    count, steps, rows = PLACES[event]
    press, log = Press(event, count), Log()
    learn = Learner(data, mlp())
    learn.model.eval()[0].train()
    modes, usual = [m.training for m in learn.model.modules()], handlers()
    with pytest.raises(KeyboardInterrupt):
        learn.fit(3, 0.01, callbacks=[press, log])
    assert len(learn.recorder.losses) == learn.step == steps
    assert len(learn.recorder.history) == rows
    assert press.events == log.events
    assert log.events[-1] == "on_train_end"
    assert log.events.count("on_batch_begin") == log.events.count("on_batch_end") == steps
    assert handlers() == usual
    assert [m.training for m in learn.model.modules()] == modes
    assert same(weights(learn), stopped_after(data, steps))

    learn.fit(1, 0.01)
    assert len(learn.recorder.losses) == steps + 10
    learn.lr_find(num_it=10, refine=False)
    learn.save(tmp_path / "model.pt")
    learn.load(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ((signal.SIGINT, signal.SIGINT), KeyboardInterrupt),
        ((signal.SIGTERM, signal.SIGINT), KeyboardInterrupt),
        ((signal.SIGINT, signal.SIGTERM), SystemExit),
    ],
)
def test_a_second_signal_stops_at_once(learn, numbers, error):
    press, log, usual = Press("on_backward_begin", 3, numbers), Log(), handlers()
    with pytest.raises(error):
        learn.fit(1, callbacks=[press, log])
    assert len(learn.recorder.losses) == learn.step == 2
    assert log.events[-2:] == ["on_loss_begin", "on_train_end"]
    assert handlers() == usual
    learn.fit(1)
    assert learn.step == 10


def test_what_torchrun_passes_on_once_more_is_no_second_signal(learn, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    press = Press("on_backward_begin", 3, [signal.SIGINT] * 2)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=[press, Checkpoint(tmp_path / "run.pt")])
    assert checkpoint.load(tmp_path / "run.pt")["run"]["place"]["step"] == learn.step == 3
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=[Press("on_backward_begin", 3, [signal.SIGINT] * 3)])
    assert learn.step == 2


def test_no_signal_takes_the_place_of_ctrl_c(learn):
    """A handler of one's own that returns ends nothing, and neither does it save from Ctrl-C."""
    calls = []
    signal.signal(signal.SIGTERM, lambda *_: calls.append(learn.step))
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=Press("on_loss_begin", 3, [signal.SIGINT, signal.SIGTERM]))
    assert calls
    assert learn.step < 10


def test_ctrl_c_at_any_line_of_the_taking_and_giving_back_of_handlers():
    usual, before = handlers(), sys.gettrace()

    def run(at):
        """Press Ctrl-C at the line of this number; return whether there is one."""
        left = at

        def trace(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename != interrupts.__file__:
                return None
            left -= event == "line"
            if left == 0 and event == "line":
                signal.raise_signal(signal.SIGINT)
            return trace

        sys.settrace(trace)
        try:
            with interrupts.Interrupts() as held:
                held.deliver()
        finally:
            sys.settrace(before)
        return left <= 0

    for at in itertools.count(1):
        try:
            pressed = run(at)
        except KeyboardInterrupt:
            assert handlers() == usual, f"at line {at} of those that run"
        else:
            assert not pressed, f"Ctrl-C at line {at} of those that run is lost"
            break


def test_sigterm_exits_with_143_after_the_step(learn):
    usual = handlers()
    with pytest.raises(SystemExit) as caught:
        learn.fit(1, callbacks=Press("on_loss_begin", 3, [signal.SIGTERM]))
    assert caught.value.code == 143
    assert len(learn.recorder.losses) == learn.step == 3
    assert handlers() == usual
    learn.fit(1)
    assert learn.step == 10


@pytest.mark.parametrize("number", HELD)
@pytest.mark.parametrize("event", ["on_backward_begin", "on_validate_begin"])
def test_a_handler_of_ones_own_is_called_between_two_steps(learn, number, event):
    press, calls = Press(event, numbers=[number]), []
    signal.signal(number, lambda number, _: calls.append((number, press.events[-1])))
    learn.fit(2, callbacks=press)
    between = {"on_backward_begin": "on_batch_end", "on_validate_begin": "on_validate_batch_end"}
    assert calls == [(number, between[event])]
    assert len(learn.recorder.losses) == learn.step == 20
    assert [row["epoch"] for row in learn.recorder.history] == [1, 2]


def test_what_a_handler_of_ones_own_raises_ends_the_run(learn):
    def handler(number, frame):
        raise LookupError

    signal.signal(signal.SIGINT, handler)
    log = Log()
    with pytest.raises(LookupError):
        learn.fit(1, callbacks=[Press("on_loss_begin", 3), log])
    assert learn.step == 3
    assert log.events[-1] == "on_train_end"
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("number", HELD)
def test_what_is_ignored_stays_ignored(learn, number):
    signal.signal(number, signal.SIG_IGN)
    learn.fit(1, callbacks=Press("on_loss_begin", 3, [number]))
    assert learn.step == 10
    assert signal.getsignal(number) is signal.SIG_IGN


def test_a_thread_that_is_not_the_main_one_installs_nothing(learn):
    usual, seen = handlers(), []

    class Look(Callback):
        def on_batch_end(self, learn):
            seen.append(handlers())

    thread = threading.Thread(target=learn.fit, args=[1], kwargs={"callbacks": Look})
    thread.start()
    thread.join()
    assert seen == [usual] * 10
    assert len(learn.recorder.history) == 1


def finished(path):
    return checkpoint.load(path)["run"]["finished"]


@pytest.mark.parametrize("number", HELD)
def test_a_signal_at_the_very_end_is_not_lost(learn, number, tmp_path):
    path = tmp_path / "run.pt"
    callbacks = [Press("on_train_end", numbers=[number]), Checkpoint(path)]
    with pytest.raises({signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}[number]):
        learn.fit(2, callbacks=callbacks)
    assert len(learn.recorder.losses) == 20
    assert len(learn.recorder.history) == 2
    assert finished(path)


@pytest.mark.parametrize(("event", "count"), [("on_step_end", 10), ("on_validate_end", 1)])
def test_stopped_in_its_last_step_a_run_has_only_its_end_left(data, event, count, tmp_path):
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        Learner(data, mlp()).fit(1, callbacks=[Press(event, count), Checkpoint(path)])
    rest, resumed = Press("no event"), Learner(data, mlp())
    resumed.resume(path, callbacks=rest)
    assert "on_batch_begin" not in rest.events
    assert finished(path)
    whole = Learner(data, mlp())
    whole.fit(1)
    assert same(weights(resumed), weights(whole))
    assert resumed.recorder.history[0]["valid_loss"] == whole.recorder.history[0]["valid_loss"]


def test_lr_find_leaves_no_trace_when_it_is_interrupted(data):
    learn, usual = Learner(data, mlp()), handlers()
    before = weights(learn)
    press = learn.model[0].register_forward_hook(lambda *_: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        learn.lr_find(num_it=10)
    press.remove()
    assert same(weights(learn), before)
    assert handlers() == usual
    learn.fit(1)
    assert learn.step == 10


def differences(one, other):
    return [name for name in one if not same(one[name], other[name])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def uninterrupted(folders):
    folder = folders()
    assert in_child(begin, Case(), folder) == 0
    return end_of(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(("at", "steps"), [(4, 5), (7, 8), (8, 8), (12, 11)])
def test_the_checkpoint_of_a_signal_resumes_to_the_same_end(
    folders, uninterrupted, number, code, at, steps
):
    folder = folders()
    assert in_child(begin, Case(), folder, {"every_epochs": None}, (at, number)) == code
    assert checkpoint.load(folder / "run.pt")["run"]["place"]["step"] == steps
    assert in_child(go_on, Case(), folder) == 0
    assert differences(end_of(folder), uninterrupted) == []


# ---- from outside: a run that is slow until its signal was sent --------------------------------

EPOCHS, SHOWN = 20, 12
SCRIPT = """
{first}
import time
from pathlib import Path
import torch
from onecycle import Callback, Checkpoint
from runs import Batches, Case, make, result

torch.set_num_threads(1)
folder = Path({folder!r})

class SlowUntilSeen(Callback):
    def on_batch_end(self, learn):
        if learn.step >= {shown}:
            (folder / "begun").touch()
        if (folder / "begun").exists() and not (folder / "seen").exists():
            time.sleep(0.2)

learn, batches = make(Case(loader={loader!r})), Batches()
checkpoint = Checkpoint(folder / "run.pt", every_epochs=None, every_steps={every}, resume=True)
learn.fit_one_cycle({epochs}, 0.05, callbacks=[batches, SlowUntilSeen(), checkpoint])
torch.save(result(learn, [batches]), folder / "end.pt")
"""


class Job:
    """A script in a folder of its own, which tells when it has begun and waits to be seen."""

    def __init__(self, folder, loader="torch", first="", every=None):
        self.folder, self.path = folder, folder / "train.py"
        values = {"loader": loader, "first": first, "every": every}
        self.text = SCRIPT.format(folder=str(folder), shown=SHOWN, epochs=EPOCHS, **values)
        self.path.write_text(self.text)

    def begun(self):
        return (self.folder / "begun").exists()

    def see(self):
        (self.folder / "seen").touch()

    def steps(self):
        return checkpoint.load(self.folder / "run.pt")["run"]["place"]["step"]

    def finish(self):
        """Run to the end, or go on with it, in a new process."""
        self.see()
        assert in_child(runpy.run_path, str(self.path)) == 0
        return end_of(self.folder)


@pytest.fixture(scope="module")
def reference(folders):
    return {loader: Job(folders(), loader).finish() for loader in ("torch", "workers")}


@posix
@pytest.mark.parametrize("loader", ["torch", "workers"])
def test_sigterm_to_a_whole_process_group_as_slurm_sends_it(folders, reference, loader):
    job = Job(folders(), loader, first="import os; os.setsid()")
    process = in_child(runpy.run_path, str(job.path), wait=False)
    try:
        until(lambda: job.begun() or process.exitcode is not None, "the first steps")
        os.killpg(process.pid, signal.SIGTERM)
        process.join(PATIENCE)
        assert process.exitcode == 143
    finally:
        process.kill()
        process.join()
    assert job.steps() >= SHOWN
    assert differences(job.finish(), reference[loader]) == []


# This process gets the terminal, of 24 lines of 80, and the script takes its place.
LOGIN = """
import fcntl, os, struct, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def environment():
    """That of a user: our modules can be imported, and progress is shown."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name != "ONECYCLE_PROGRESS"}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def in_terminal(job):
    """Run in a terminal, press Ctrl-C once the bar is there; return the exit code and the text."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", LOGIN, str(job.path)]
    streams = dict.fromkeys(["stdin", "stdout", "stderr"], theirs)
    process = subprocess.Popen(command, env=environment(), start_new_session=True, **streams)
    os.close(theirs)
    text, pressed = b"", False
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            if select.select([ours], [], [], 0.01)[0]:
                try:
                    read = os.read(ours, 65536)
                except OSError:  # Linux says so when nobody has the terminal any more
                    read = b""
                if not read:
                    break
                text += read
            if not pressed and job.begun() and b"%|" in text.rpartition(b"\n")[2]:
                os.write(ours, b"\x03")
                pressed = True
        return process.wait(PATIENCE), text.decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def screen(text):
    """The lines that are to be seen, where `\\r` has gone back to the beginning."""
    lines = []
    for line in text.replace("\r\n", "\n").replace("^C", "").split("\n"):
        cells = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


TRACEBACK = "Traceback (most recent call last):"


@posix
@pytest.mark.parametrize("loader", ["torch", "workers"])
def test_ctrl_c_in_a_real_terminal(folders, reference, loader):
    job = Job(folders(), loader)
    code, text = in_terminal(job)
    assert code == -signal.SIGINT, text
    lines = screen(text)
    assert not [line for line in lines if "%|" in line], text
    assert text.count(TRACEBACK) == lines.count(TRACEBACK) == 1, text
    assert lines[-2:] == ["KeyboardInterrupt", ""], text
    *table, said = lines[: lines.index(TRACEBACK)]
    assert said.startswith("stopped at epoch"), text
    assert [line.split()[0] for line in table] == ["epoch", *map(str, range(1, len(table)))]
    assert len({len(line) for line in table}) == 1
    assert job.steps() >= SHOWN
    assert differences(job.finish(), reference[loader]) == []


class Kernel:
    """A real Jupyter kernel."""

    def __init__(self):
        self.manager, self.client = start_new_kernel(PATIENCE, env=environment())
        self.page = {}

    def start(self, code):
        """Begin to run a cell; what it displays is in `page`."""
        self.page.clear()
        return self.client.execute(code)

    def outputs(self, cell):
        """Wait until a cell is done; return its text and what it raised."""
        text, error = "", None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != cell:
                continue
            if kind == "status" and content["execution_state"] == "idle":
                return text, error
            if "display_data" in kind:
                self.page[content["transient"]["display_id"]] = json.dumps(content["data"])
            text += content.get("text", "")
            error = content.get("ename", error)
        raise TimeoutError(f"waited {PATIENCE} seconds for a cell: {text}")

    def run(self, code):
        """Run a cell; return its text."""
        text, error = self.outputs(self.start(code))
        assert error is None, text
        return text

    def kill(self):
        self.manager.signal_kernel(signal.SIGKILL)
        until(lambda: not self.manager.is_alive(), "the end of the kernel")

    def restart(self):
        self.manager.restart_kernel(now=True)
        self.client.wait_for_ready(PATIENCE)

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self.manager.cleanup_resources()


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    yield kernel
    kernel.close()


LOOK = """
import json
before = [len(learn.recorder.history), len(learn.recorder.losses), learn.step]
learn.fit(1)
print(json.dumps([before, len(learn.recorder.history), len(learn.recorder.losses)]))
"""


@posix
@pytest.mark.filterwarnings("default")
def test_a_kernel_that_is_interrupted_keeps_the_history_and_trains_on(kernel, folders, reference):
    job = Job(folders())
    cell = kernel.start(job.text)
    until(job.begun, "the first steps")
    kernel.manager.interrupt_kernel()
    text, error = kernel.outputs(cell)
    assert error == "KeyboardInterrupt", text
    assert 'class=\\"onecycle' in "".join(kernel.page.values())
    assert "widget" not in "".join(kernel.page.values())
    job.see()
    (rows, losses, step), rows_then, losses_then = json.loads(kernel.run(LOOK))
    assert losses == step == job.steps() >= SHOWN
    assert rows >= 1
    assert (rows_then, losses_then) == (rows + 1, losses + 8)
    assert "resumed from" in kernel.run(job.text)
    assert differences(end_of(job.folder), reference["torch"]) == []


@posix
@pytest.mark.filterwarnings("default")
def test_a_kernel_that_is_killed_goes_on_when_the_cell_is_run_again(kernel, folders):
    whole, job = Job(folders()), Job(folders(), every=5)
    whole.see()
    assert "resumed from" not in kernel.run(whole.text)
    kernel.start(job.text)
    until(job.begun, "the first steps")
    kernel.kill()
    kernel.restart()
    job.see()
    assert "resumed from" in kernel.run(job.text)
    assert differences(end_of(job.folder), end_of(whole.folder)) == []
