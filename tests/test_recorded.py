"""Steps that are recorded once and replayed; here what is done again is done by Python."""

import copy
from collections import namedtuple

import pytest
import torch
from helpers import Halt, everything, mlp, plain, same, sgd, weights
from torch import nn

from onecycle import ActivationStats, Callback, Checkpoint, DataLoaders, Learner
from onecycle.guard import Guard
from onecycle.recorded import RecordedStep

WARM_UP = 3
LEFT_OUT, NO_LOSS = "1 steps .* were left out", "1 of 11 steps of epoch 1 had no finite loss"
OPT = {"adamw": torch.optim.AdamW, "sgd": sgd}
NOT_RECORDED = "steps are not recorded: "


class Tape:
    """Records by keeping the work; counts the recordings and how often they were played."""

    def __init__(self):
        self.recorded = self.played = 0

    def __call__(self, work):
        self.recorded += 1

        def play():
            self.played += 1
            work()

        return play


def taped(learn):
    """Have the steps of `learn` recorded; return the tape."""
    tape = Tape()
    learn.training_step.recorded = RecordedStep(record=tape)
    return tape


def result(learn):
    rows = [{**row, "seconds": 0} for row in learn.recorder.history]
    return [weights(learn), learn.recorder.losses, learn.recorder.grad_norms, rows]


@pytest.fixture
def ragged(digit_tensors):
    """310 digits, in 10 batches of 30 and one of 10."""
    x, y = digit_tensors
    return DataLoaders.from_tensors(x[:310], y[:310], valid=(x[:50], y[:50]), batch_size=30)


# ---- on the CPU there are no graphs -------------------------------------------------------------


def test_on_the_cpu_it_warns_once_a_fit_and_trains_as_ever(data):
    runs = []
    for compile_ in (False, "step"):
        torch.manual_seed(0)
        learn = Learner(data, mlp(), compile=compile_, device="cpu")
        for _ in range(2):
            if compile_:
                with pytest.warns(UserWarning, match="CUDA graphs need cuda") as warned:
                    learn.fit_one_cycle(1, 0.01)
                assert len(warned) == 1
            else:
                learn.fit_one_cycle(1, 0.01)
        runs.append(result(learn))
    assert same(*runs)


def test_parts_of_the_model_are_called_as_ever(data):
    assert not Learner(data, mlp(), compile="step").network.compiled


# ---- a recorded run is the run ------------------------------------------------------------------


class Added(nn.Module):
    """Of two inputs, as arguments or by name."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, image, shift):
        return self.net(image + shift)


def several(digit_tensors, kind):
    x, y = (part[:310] for part in digit_tensors)
    parts = list(zip(x.split(30), (0.1 * x.flip(0)).split(30), y.split(30), strict=True))
    if kind is dict:
        parts = [dict(zip(("image", "shift", "target"), part, strict=True)) for part in parts]
    return Added(), (parts, None)


OPTIONS = {
    "plain": {},
    "sgd": {"opt_func": sgd},
    "clip": {"clip": 0.5},
    "norm": {"clip": float("inf")},
    "bf16": {"precision": "bf16"},
    "skip": {"on_nan": "skip"},
    "ignore": {"on_nan": "ignore"},
    "channels": {"channels_last": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_trains_bit_for_bit_as_without(ragged, options):
    runs, tapes = [], []
    for record in (True, False):
        torch.manual_seed(0)
        learn = Learner(ragged, mlp(), **options)
        tapes.append(taped(learn) if record else None)
        learn.fit_one_cycle(3, 0.02)
        runs.append(result(learn))
    assert same(*runs)
    assert (tapes[0].recorded, tapes[0].played) == (1, 3 * 10 - WARM_UP)


@pytest.mark.parametrize("kind", [tuple, dict])
def test_several_inputs_are_all_copied(digit_tensors, kind):
    runs, tape = [], None
    for record in (True, False):
        model, data = several(digit_tensors, kind)
        torch.manual_seed(0)
        learn = Learner(data, model)
        tape = taped(learn) if record else tape
        learn.fit(2, 0.01)
        runs.append(result(learn))
    assert same(*runs)
    assert tape.played > 0


def test_data_of_the_user_are_never_written_to(digit_tensors):
    _, data = several(digit_tensors, tuple)
    before = copy.deepcopy(data)
    learn = Learner(data, Added())
    assert taped(learn).played == 0
    learn.fit(2)
    assert same(before, data)


def test_every_step_has_a_loss_and_an_output_of_its_own(data):
    class Keep(Callback):
        def __init__(self):
            self.losses, self.preds = [], []

        def on_batch_end(self, learn):
            self.losses.append(learn.loss)
            self.preds.append(learn.pred)

    keep = Keep()
    learn = Learner(data, mlp(), callbacks=[keep])
    tape = taped(learn)
    learn.fit(1)
    assert tape.played == 7
    assert [loss.item() for loss in keep.losses] == learn.recorder.losses.tolist()
    assert len({pred.sum().item() for pred in keep.preds}) == 10
    # Or autograd would keep what belongs to the recording.
    assert not any(pred.requires_grad for pred in keep.preds[WARM_UP:])


def test_another_shape_of_one_size_is_another(digit_tensors):
    """By the same names in another order, or by other names, a batch is not the recorded one."""
    x, y = (part[:180] for part in digit_tensors)
    xs, ys = x.split(30), y.split(30)
    rows = [{"image": a, "shift": 0 * a, "target": b} for a, b in zip(xs, ys, strict=True)]
    rows[5] = {"shift": 0 * xs[5], "image": xs[5], "target": ys[5]}
    learn = Learner((rows, None), Added())
    tape = taped(learn)
    learn.fit(1)
    assert tape.played == 2


# ---- when nothing is recorded -------------------------------------------------------------------


def hooked(event):
    return type("Hooked", (Callback,), {event: lambda self, learn: None})()


@pytest.mark.parametrize("event", ["on_loss_begin", "on_backward_begin"])
def test_a_hook_in_between_is_called_and_named(data, event):
    learn = Learner(data, mlp(), callbacks=[hooked(event)])
    tape = taped(learn)
    with pytest.warns(UserWarning, match=f"{NOT_RECORDED}a callback has {event}") as warned:
        learn.fit(2)
    assert (tape.recorded, len(warned)) == (0, 1)


def test_activation_stats_sees_every_layer(data):
    stats = ActivationStats(every=1)
    learn = Learner(data, mlp(), callbacks=[stats])
    taped(learn)
    with pytest.warns(UserWarning, match="on_loss_begin"):
        learn.fit(1)
    assert len(stats.steps) == 10


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"precision": "fp16"}])
def test_what_changes_from_step_to_step_is_not_recorded(data, options):
    runs = []
    for record in (True, False):
        torch.manual_seed(0)
        learn = Learner(data, mlp(), **options)
        if record:
            tape = taped(learn)
            with pytest.warns(UserWarning, match="accumulate and fp16 change"):
                learn.fit(2)
            assert tape.recorded == 0
        else:
            learn.fit(2)
        runs.append(result(learn))
    assert same(*runs)


Pair = namedtuple("Pair", "image shift")


@pytest.mark.parametrize(
    ("extra", "named"), [(0.5, "float"), ("name", "str"), (Pair(torch.ones(1), 1), "Pair")]
)
def test_what_would_stay_as_it_was_recorded_is_named(digit_tensors, extra, named):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x, _):
            return self.net(x)

    x, y = digit_tensors
    rows = [(x[i : i + 30], extra, y[i : i + 30]) for i in range(0, 180, 30)]
    learn = Learner((rows, None), First())
    tape = taped(learn)
    with pytest.warns(UserWarning, match=f"{NOT_RECORDED}the batch holds a {named}"):
        learn.fit(1)
    assert (tape.recorded, learn.step) == (0, 6)


@pytest.mark.parametrize("message", ["operation not permitted\nwhen capturing", ""])
def test_an_error_of_the_recording_is_told_and_training_goes_on(data, message):
    def fail(work):
        work()  # half of it, for all one knows
        raise RuntimeError(message)

    model = plain()
    learn = Learner(data, model)
    learn.training_step.recorded = RecordedStep(record=fail)
    with pytest.warns(UserWarning, match=f"{NOT_RECORDED}RuntimeError:") as warned:
        learn.fit(2, 0.01)
    reference = Learner(data, plain())
    reference.fit(2, 0.01)
    assert len(warned) == 1
    assert same(weights(learn), weights(reference))


class Replaces(nn.Module):
    """Puts a new tensor where a buffer was, which kernels cannot."""

    def __init__(self):
        super().__init__()
        self.net = plain()
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        return self.net(x - self.mean)


def test_a_model_that_replaces_a_buffer_is_told_and_trained_as_ever(data):
    def once(work):
        work()
        return work

    runs = []
    for record in (True, False):
        learn = Learner(data, Replaces())
        if record:
            learn.training_step.recorded = RecordedStep(record=once)
            with pytest.warns(UserWarning, match="the model replaces a buffer"):
                learn.fit(2, 0.01)
        else:
            learn.fit(2, 0.01)
        runs.append(result(learn))
    assert same(*runs)


# ---- what changes in between --------------------------------------------------------------------


def test_parameters_frozen_between_two_fits_stay(data):
    learn = Learner(data, nn.Sequential(plain(), nn.Linear(10, 10)), splitter=list)
    tape = taped(learn)
    learn.fit(1, 0.01)
    learn.freeze()
    before = learn.model[0].weight.clone()
    learn.fit(1, 0.01)
    assert tape.recorded == 2
    assert torch.equal(before, learn.model[0].weight)


def test_parameters_unfrozen_in_the_middle_are_recorded_anew(data):
    class Unfreeze(Callback):
        def on_epoch_begin(self, learn):
            if learn.epoch == 1:
                learn.unfreeze()

    runs, tape = [], None
    for record in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(plain(), nn.Linear(10, 10))
        learn = Learner(data, model, splitter=list, callbacks=[Unfreeze])
        learn.freeze()
        tape = taped(learn) if record else tape
        learn.fit(3, 0.01)
        runs.append(result(learn))
    assert same(*runs)
    assert (tape.recorded, tape.played) == (2, 30 - 2 * WARM_UP)


def test_lr_find_leaves_no_trace(data):
    learn = Learner(data, mlp())
    tape = taped(learn)
    learn.fit_one_cycle(1, 1e-2)
    before, played = everything(learn), tape.played
    learn.lr_find(num_it=30)
    assert tape.played == played  # every loss is looked at before its backward pass
    assert same(before, everything(learn))


def test_a_run_that_is_over_keeps_nothing_of_the_recording(data):
    learn = Learner(data, mlp())
    taped(learn)
    learn.fit(1)
    recorded = learn.training_step.recorded
    assert recorded._replay is None
    assert recorded._kept == recorded._gradients == []


def test_a_resumed_run_is_the_run(ragged, tmp_path):
    torch.manual_seed(2)
    whole = Learner(ragged, mlp())
    whole.fit_one_cycle(2, 0.01, callbacks=[Halt(None)])
    torch.manual_seed(2)
    learn = Learner(ragged, mlp())
    taped(learn)
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(2, 0.01, callbacks=[Halt(8), Checkpoint(path, every_steps=1)])
    learn = Learner(ragged, mlp())
    tape = taped(learn)
    learn.resume(path, callbacks=[Halt(None)])
    assert tape.played > 0
    assert same(result(learn), result(whole))


# ---- the guard ----------------------------------------------------------------------------------


def with_a_nan(digit_tensors, at):
    x, y = (part[:310].clone() for part in digit_tensors)
    x[30 * at] = float("nan")
    return list(zip(x.split(30), y.split(30), strict=True)), None


@pytest.mark.parametrize("at", [6, 9])
def test_a_batch_that_is_skipped_leaves_no_gradient_behind(digit_tensors, at):
    """A replay has made the gradients before the loss can be looked at."""
    runs = []
    for record in (True, False):
        torch.manual_seed(0)
        learn = Learner(with_a_nan(digit_tensors, at), mlp(), on_nan="skip")
        if record:
            taped(learn)
        with pytest.warns(UserWarning, match="batch skipped"):
            learn.fit(2, 0.01)
        runs.append(result(learn))
    assert same(*runs)


class Unwaited(Guard):
    """The way of an accelerator."""

    def begin(self, modules, *, scaled=False):
        super().begin(modules, scaled=scaled)
        self._waits = False


class Written(nn.Module):
    """A buffer that is written to in the forward pass."""

    def __init__(self):
        super().__init__()
        self.net = plain()
        self.register_buffer("mean", torch.zeros(64))

    def forward(self, x):
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return self.net(x)


@pytest.mark.parametrize("opt", ["adamw", "sgd"])
def test_a_device_leaves_bad_steps_out_itself(digit_tensors, opt):
    learn = Learner(with_a_nan(digit_tensors, 6), Written(), opt_func=OPT[opt], on_nan="skip")
    learn.training_step.guard = Unwaited(learn.opt, learn.device, "skip")
    tape = taped(learn)
    with pytest.warns(UserWarning, match=LEFT_OUT), pytest.warns(UserWarning, match=NO_LOSS):
        learn.fit(1, 0.01)
    assert tape.played > 0
    assert all(p.isfinite().all() for p in learn.model.parameters())
    assert learn.model.mean.isfinite().all()


def test_momentum_begins_after_a_first_step_that_was_left_out(digit_tensors):
    """Torch's fused SGD takes for it what is in memory."""
    learn = Learner(with_a_nan(digit_tensors, 0), plain(), opt_func=sgd, on_nan="skip")
    learn.training_step.guard = Unwaited(learn.opt, learn.device, "skip")
    _ = [torch.full((10, 64), float("nan")) for _ in range(99)]
    with pytest.warns(UserWarning, match=LEFT_OUT), pytest.warns(UserWarning, match=NO_LOSS):
        learn.fit(1, 0.01)
    assert all(state["momentum_buffer"].isfinite().all() for state in learn.opt.state.values())


# ---- on cuda ------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_train_as_without(ragged, precision):
    runs = []
    for compile_ in (False, "step"):
        torch.manual_seed(0)
        learn = Learner(ragged, mlp(), compile=compile_, precision=precision, device="cuda")
        learn.fit_one_cycle(3, 0.02)
        learn.lr_find(num_it=20)
        learn.fit_one_cycle(1, 0.02)
        runs.append(learn.recorder.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")
def test_after_a_recording_that_failed_dropout_still_draws(ragged):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            x = self.net(x)
            return x * float(x.detach().sum() * 0 + 1)

    learn = Learner(ragged, Reads(), compile="step", device="cuda")
    with pytest.warns(UserWarning, match=NOT_RECORDED):
        learn.fit(2)
    assert learn.step == 22
