"""The loop costs next to nothing: what can be said of that without a clock."""

import gc
import subprocess
import sys
import tracemalloc

import pytest
import torch
from helpers import Halt, plain, sgd, stepped
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils._python_dispatch import TorchDispatchMode

from onecycle import Callback, Checkpoint, Learner, ParamScheduler
from onecycle.schedules import cosine, progress

EXTRA = 30  # Python functions that a step may call beyond those of the plain loop
RUNS = 40, 140  # steps of two runs, whose difference is what a hundred steps cost


def batches(digit_tensors, n):
    """As many batches of 8 digits, made beforehand."""
    x, y = (part[:1400] for part in digit_tensors)
    whole = list(zip(x.split(8), y.split(8), strict=True))
    return (whole * (n // len(whole) + 1))[:n]


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def plain_loop(data):
    model, losses = tiny(), []
    opt = torch.optim.AdamW(model.parameters())
    scheduler = OneCycleLR(opt, 0.01, total_steps=len(data))
    for x, y in data:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        scheduler.step()
        opt.zero_grad()
        losses.append(loss.item())


def ours(data, **options):
    learn = Learner((data, None), tiny(), device="cpu", **options)
    learn.fit_one_cycle(1, 0.01)
    return learn


def calls(function, *args):
    """How often a Python function is called by `function`."""
    count = 0

    def look(frame, event, arg):
        nonlocal count
        count += event == "call"

    sys.setprofile(look)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return count


def each_step(digit_tensors, measure):
    """Of what `measure` finds in two runs, the part that grows with the steps."""
    short, long = (measure(batches(digit_tensors, n)) for n in RUNS)
    return (long - short) / (RUNS[1] - RUNS[0])


def test_a_step_calls_few_functions_beyond_the_plain_loop(digit_tensors):
    plain_loop(batches(digit_tensors, 2))  # torch imports things at first
    ours(batches(digit_tensors, 2))
    theirs = each_step(digit_tensors, lambda data: calls(plain_loop, data))
    mine = each_step(digit_tensors, lambda data: calls(ours, data))
    assert mine <= theirs + EXTRA


# ---- reads of the host ---------------------------------------------------------------------------


class Reads(TorchDispatchMode):
    """Counts what waits for a number, as it would wait for an accelerator."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.equal.default,
        )
        return function(*args, **(kwargs or {}))


def reads(data, **options):
    with Reads() as found:
        ours(data, **options)
    return found.count


def test_what_reads_is_counted():
    with Reads() as found:
        torch.ones(()).item()
        bool(torch.ones(()) > 0)
        torch.ones(3).tolist()
    assert found.count >= 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"on_nan": "ignore"}, 0),
        ({"on_nan": "ignore", "clip": float("inf")}, 0),
        ({"on_nan": "ignore", "accumulate": 2}, 0),
        ({"on_nan": "ignore", "precision": "bf16"}, 0),
        ({"on_nan": "ignore", "channels_last": True}, 0),
        ({"on_nan": "raise"}, 2),  # by the guard, which on the CPU looks at once
        ({"on_nan": "skip"}, 2),
    ],
)
def test_a_step_reads_nothing_but_what_the_guard_asks_for(digit_tensors, options, expected):
    each = each_step(digit_tensors, lambda data: reads(data, **options))
    # Beside them the recorder reads losses, a block at once.
    assert each == pytest.approx(expected, abs=0.05)


def test_validation_reads_nothing_for_a_batch(digit_tensors):
    def measure(data):
        learn = Learner((data, None), tiny(), on_nan="ignore")
        with Reads() as found:
            learn.validate(data)
        return found.count

    assert each_step(digit_tensors, measure) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")
@pytest.mark.parametrize("options", [{}, {"precision": "bf16"}, {"clip": 1.0}, {"on_nan": "skip"}])
def test_no_step_waits_for_cuda(digit_tensors, options):
    class Alone(Callback):
        """Forbids to wait within batches, between the first and the last."""

        def on_batch_begin(self, learn):
            inside = 5 < learn.batch_index < learn.batches_per_epoch - 1
            torch.cuda.set_sync_debug_mode("error" if inside else "default")

        def on_train_end(self, learn):
            torch.cuda.set_sync_debug_mode("default")

    x, y = digit_tensors
    data = [(x[i : i + 8].cuda(), y[i : i + 8].cuda()) for i in range(0, 400, 8)]
    learn = Learner((data, None), tiny(), device="cuda", callbacks=[Alone], **options)
    learn.fit_one_cycle(1, 0.01)
    assert learn.step == 50


# ---- memory --------------------------------------------------------------------------------------

OWN = 16  # bytes that the recorder keeps of a step
ROOM = 16  # bytes of a step, for arrays that grow ahead of what is in them


class Traced(Callback):
    """Takes the bytes that Python holds at two steps."""

    def __init__(self, at):
        self.at, self.bytes = at, []

    def on_batch_begin(self, learn):
        if learn.step in self.at:
            _ = learn.recorder.losses  # what waits to be read is no growth
            gc.collect()
            self.bytes.append(tracemalloc.get_traced_memory()[0])


@pytest.mark.parametrize("options", [{}, {"on_nan": "ignore"}, {"clip": float("inf")}])
def test_no_step_leaves_memory_behind(digit_tensors, options):
    first, last = 200, 2200
    data = batches(digit_tensors, last + 10)
    traced = Traced((first, last))
    learn = Learner((data, None), tiny(), callbacks=[traced], **options)
    tracemalloc.start()
    try:
        learn.fit_one_cycle(1, 0.01, keep_trunk=False)
    finally:
        tracemalloc.stop()
    grown = (traced.bytes[1] - traced.bytes[0]) / (last - first)
    assert grown <= OWN + ROOM + (4 if "clip" in options else 0)


# ---- the start -----------------------------------------------------------------------------------

START = """
import sys
import torch
from torch import nn
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
torch.optim.AdamW(model.parameters(), fused=True)  # which imports much by itself
before = set(sys.modules)
from onecycle import Callback, Learner
from onecycle.data import digits
class First(Callback):
    def on_batch_begin(self, learn):
        if learn.step == 0:
            new = {name.partition(".")[0] for name in set(sys.modules) - before}
            print(sorted(new & set("matplotlib torchvision tqdm pandas IPython PIL".split())))
            print(any(name.startswith("torch._dynamo") for name in set(sys.modules) - before))
Learner(digits(), model, callbacks=[First]).fit_one_cycle(1, 0.01)
"""


def test_the_first_step_begins_without_importing_anything_heavy():
    run = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["[]", "False"]


# ---- values that are computed ahead --------------------------------------------------------------


def curve(p):
    """A schedule of no shape that could be guessed."""
    return 0.01 * (1.0 + p) ** 2 / (1.0 + 7.0 * p * p)


def steps_of(digit_tensors, n):
    x, y = digit_tensors
    return [(x[i % 1000 : i % 1000 + 2], y[i % 1000 : i % 1000 + 2]) for i in range(n)]


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 600])
def test_every_step_has_the_value_of_its_own_progress(digit_tensors, n):
    scheduler = ParamScheduler({"lr": curve, "mom": cosine(0.5, 0.9)})
    learn = Learner((steps_of(digit_tensors, n), None), plain(), callbacks=[scheduler])
    lrs = stepped(learn)
    learn.fit(1)
    assert [groups[-1] for groups in lrs] == [curve(progress(t, n)) for t in range(n)]
    assert learn.recorder.moms == pytest.approx(
        [cosine(0.5, 0.9)(progress(t, n)) for t in range(n)]
    )


@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 600])
def test_a_shorter_run_after_a_longer_one_has_its_own(digit_tensors, n):
    scheduler = ParamScheduler({"lr": curve})
    learn = Learner((steps_of(digit_tensors, n), None), plain(), callbacks=[scheduler])
    learn.fit(2)
    learn.fit(1)
    assert learn.recorder.lrs[2 * n :].tolist() == [curve(progress(t, n)) for t in range(n)]


@pytest.mark.parametrize("at", [1, 255, 256, 257, 599])
@pytest.mark.parametrize("same_learner", [True, False])
def test_after_a_resume_too(digit_tensors, tmp_path, at, same_learner):
    def make():
        return Learner((steps_of(digit_tensors, 600), None), plain(), opt_func=sgd)

    def given(stop):
        return [scheduler, Halt(stop)]

    learn, scheduler, path = make(), ParamScheduler({"lr": curve}), tmp_path / "run.pt"
    saver = Checkpoint(path, every_steps=100)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, callbacks=[*given(at), saver])
    learn = learn if same_learner else make()
    learn.resume(path, callbacks=given(None))
    assert learn.recorder.lrs.tolist() == [curve(progress(t, 600)) for t in range(600)]


def test_a_function_may_read_what_a_callback_changes_by_epochs(data):
    class Falls(Callback):
        rate = 0.1

        def on_epoch_begin(self, learn):
            self.rate = 0.1 / 10**learn.epoch

    falls = Falls()
    learn = Learner(data, plain(), callbacks=[falls, ParamScheduler({"lr": lambda _: falls.rate})])
    learn.fit(3)
    assert sorted(set(learn.recorder.lrs), reverse=True) == pytest.approx([0.1, 0.01, 0.001])
