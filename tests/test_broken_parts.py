"""Broken parts: callbacks, metrics, models, losses and loaders that fail at the worst moment.

The error is the user's own, with a note of its place, or names the argument; the learner is whole.
"""

import signal
import sys
from functools import partial

import pytest
import torch
from helpers import Log, everything, mlp, plain, same
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from onecycle import ActivationStats, Callback, DataLoaders, Learner, accuracy, mse
from onecycle.callback import EVENTS
from onecycle.data import InMemoryLoader
from onecycle.metrics import MeanMetric

NAN, INF = float("nan"), float("inf")
NOTES = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no notes")


class OwnError(Exception):
    """An error that cannot be made again from its message."""

    def __init__(self, code, reason):
        super().__init__(f"{code}: {reason}")
        self.code = code


def noted(error, *texts):
    """Check what the notes of an error say; Python 3.10 has none."""
    if sys.version_info >= (3, 11):
        notes = "\n".join(getattr(error, "__notes__", []))
        assert all(text in notes for text in texts), notes


def raised(call, error, *notes):
    """Check that `call` raises this very error, with these notes."""
    with pytest.raises(type(error)) as caught:
        call()
    assert caught.value is error
    noted(error, *notes)


def early(call, message, learn):
    """Check that `call` raises before the first step, and leaves all but the counters as it was."""
    before = everything(learn)
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        call()
    assert same({**everything(learn), "counters": 0}, {**before, "counters": 0})
    assert not learn.loop.running
    return caught.value


def surroundings(learn):
    """What a fit may not leave behind."""
    modules = list(learn.model.modules())
    return [
        [module.training for module in modules],
        [len(module._forward_hooks) for module in modules],
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        [hook for hooks in learn.loop.hooks.values() for hook in hooks],
        [learn.batch, learn.pred, learn.loss, learn.loop.callbacks, learn.loop.running],
        [{k: v for k, v in group.items() if k != "params"} for group in learn.opt.param_groups],
    ]


class Modes(Callback):
    """The mode of the model at every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, learn):
        self.seen.append(learn.model.training)


def trains(learn):
    """Whether a fit of two epochs trains all its steps, in training mode."""
    modes, rows = Modes(), len(learn.recorder.history)
    learn.fit_one_cycle(2, 1e-2, callbacks=[modes])
    return modes.seen == [True] * 20 and len(learn.recorder.history) == rows + 2


# ---- callbacks -----------------------------------------------------------------------------------

OCCURRENCES = [*((event, 1) for event in EVENTS), ("on_step_end", 2), ("on_epoch_end", 2)]


@pytest.mark.parametrize("place", OCCURRENCES, ids=str)
def test_a_broken_callback_leaves_nothing_behind(data, place):
    error = OwnError(3, "by design")
    learn = Learner(data, mlp(), metrics=accuracy, callbacks=ActivationStats(every=1))
    learn.model[1].eval()
    before = surroundings(learn)
    log = Log({place: error})
    call = partial(learn.fit_one_cycle, 2, 1e-2, callbacks=log)
    raised(call, error, f"raised by the callback Log in {place[0]}")
    if place[0] != "on_train_end":
        noted(error, f"after {len(learn.recorder.losses)} steps", "in epoch")
    assert surroundings(learn) == before
    assert trains(learn)


PASSING = [*((event, KeyboardInterrupt()) for event in EVENTS), ("on_step_end", SystemExit(3))]


@pytest.mark.parametrize(("event", "error"), PASSING)
def test_what_is_no_exception_of_the_user_goes_through(learn, event, error):
    before = surroundings(learn)
    raised(lambda: learn.fit(1, callbacks=Log({(event, 1): error})), error)
    assert surroundings(learn) == before
    assert trains(learn)


@pytest.mark.parametrize("event", ["on_train_begin", "on_backward_end", "on_train_end"])
def test_a_learner_whose_own_callback_breaks_can_go_on_without_it(data, event):
    learn = Learner(data, mlp(), callbacks=Log({(event, 1): OwnError(1, "own")}))
    with pytest.raises(OwnError):
        learn.fit(1)
    learn.callbacks.clear()
    assert trains(learn)


def test_two_broken_callbacks_are_both_told(learn):
    first, last = OwnError(1, "first"), OwnError(2, "last")
    logs = [Log({("on_step_end", 1): first}), Log({("on_train_end", 1): last})]
    raised(
        lambda: learn.fit(1, callbacks=logs), first, "on_train_end failed too: OwnError('2: last')"
    )


# ---- metrics -------------------------------------------------------------------------------------


def by_design(*_):
    raise ZeroDivisionError("by design")


class Metric:
    """A metric object that is broken in one of its methods."""

    def __init__(self, **methods):
        vars(self).update(methods)

    def reset(self): ...

    def update(self, pred, target): ...

    def compute(self):
        return 1.0


NUMBER = "must return one number"
METRICS = [
    ("raised ZeroDivisionError: by design", by_design),
    ("raised ZeroDivisionError: by design", MeanMetric(by_design)),
    ("raised ZeroDivisionError: by design", Metric(update=by_design)),
    ("raised ZeroDivisionError: by design", Metric(compute=by_design)),
    ("raised ZeroDivisionError: by design", Metric(reset=by_design)),
    ("raised TypeError: .* takes 1 positional argument", lambda pred: 1.0),
    ("raised ValueError: pred and target must have one shape", mse),
    (f"{NUMBER}, got 'word'", lambda pred, target: "word"),
    (f"{NUMBER}, got None", lambda pred, target: None),
    (f"{NUMBER}, got {{'f1': 1.0}}", lambda pred, target: {"f1": 1.0}),
    (rf"{NUMBER}, got a shape of \(100, 10\)", lambda pred, target: pred),
    (rf"{NUMBER}, got a shape of \(0,\)", lambda pred, target: []),
    (f"{NUMBER}, got None", Metric(compute=lambda: None)),
    (rf"{NUMBER}, got a shape of \(2,\)", Metric(compute=lambda: [1.0, 2.0])),
]


@pytest.mark.parametrize(("message", "metric"), METRICS)
def test_a_broken_metric_costs_nothing(data, message, metric):
    learn = Learner(data, mlp(), metrics={"good": accuracy, "bad one": metric})
    early(lambda: learn.fit_one_cycle(3, 1e-2), f"metrics: 'bad one' {message}", learn)
    assert learn.recorder.fits == []
    learn.metrics.pop("bad one")
    assert trains(learn)


@pytest.mark.parametrize(("message", "metric"), METRICS[:4])
def test_the_error_of_a_metric_keeps_its_cause(data, message, metric):
    learn = Learner(data, plain(), metrics={"m": metric})
    for call in (learn.validate, partial(learn.fit, 1)):
        error = early(call, f"metrics: 'm' {message}", learn)
        assert isinstance(error.__cause__, ZeroDivisionError)


class Whole:
    """Needs more samples than one batch has."""

    def reset(self):
        self.n = 0

    def update(self, pred, target):
        self.n += len(target)

    def compute(self):
        if self.n < 100:
            raise ValueError("only one class is present")
        return self.n


def whole(pred, target):
    if len(target) < 100:
        raise ValueError("only one class is present")
    return len(target)


@pytest.mark.parametrize("metric", [whole, Whole()])
def test_a_metric_that_fails_on_a_batch_and_not_on_the_set_works(data, metric):
    learn = Learner(data, mlp(), metrics={"n": metric})
    learn.fit(2)
    assert learn.recorder.columns()["n"] == [100.0, 100.0]


def test_a_look_at_a_metric_does_not_change_the_training(data):
    runs = [Learner(data, mlp(), metrics=metrics) for metrics in ([], [whole])]
    for learn in runs:
        torch.manual_seed(0)
        learn.fit(2)
    assert same(*([*learn.model.parameters()] for learn in runs))


# ---- models and losses ---------------------------------------------------------------------------


class Odd(nn.Module):
    """Turns its output into something else; raises at one training batch."""

    def __init__(self, turn=lambda pred: pred, at=0, error=None):
        super().__init__()
        self.net, self.turn, self.at, self.error, self.calls = mlp(), turn, at, error, 0

    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls == self.at:
            raise self.error
        return self.turn(self.net(x))


OUTPUTS = {
    "NoneType": lambda pred: None,
    "tuple": lambda pred: (pred, pred),
    "list": lambda pred: [pred],
    "dict": lambda pred: {"logits": pred},
    "float": lambda pred: 0.5,
    "ndarray": lambda pred: pred.detach().numpy(),
}


@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_model_that_returns_no_tensor(data, kind, valid):
    learn = Learner((data.train, data.valid if valid else None), Odd(OUTPUTS[kind]))
    message = f"loss_func cannot be inferred for a model that returns {kind}: pass"
    if valid:
        early(lambda: learn.fit(1), message, learn)
    else:
        with pytest.raises(TypeError, match=message):
            learn.fit(1)


@pytest.mark.parametrize("batch", [1, 10, 11])
@pytest.mark.parametrize("part", ["model", "loss_func"])
def test_a_model_or_loss_that_raises_at_some_step(data, part, batch):
    error = OwnError(7, "out of memory")
    broken = Odd(at=batch, error=error)

    def loss_func(pred, target):
        broken.calls += pred.requires_grad
        if pred.requires_grad and broken.calls == batch:
            raise error
        return nn.functional.cross_entropy(pred, target)

    learn = Learner(data, broken) if part == "model" else Learner(data, mlp(), loss_func)
    before = surroundings(learn)
    epoch, number = divmod(batch - 1, 10)
    place = f"in epoch {epoch + 1} of 2, batch {number + 1}, after {batch - 1} steps"
    raised(lambda: learn.fit(2), error, place)
    assert len(learn.recorder.losses) == batch - 1
    assert surroundings(learn) == before
    broken.calls = 100
    assert trains(learn)


LOSSES = [
    ("must return a tensor, got float: 0.5", lambda pred, target: 0.5),
    ("must return a tensor, got NoneType: None", lambda pred, target: None),
    ("must return a tensor, got str: 'low'", lambda pred, target: "low"),
    ("must return a tensor, got dict", lambda pred, target: {"loss": pred.sum()}),
    ("must return a tensor, got tuple", lambda pred, target: (pred.sum(), 0)),
    (r"must return a scalar, got a shape of \(30,\): take its mean", lambda pred, _: pred.sum(1)),
    (r"must return a scalar, got a shape of \(1,\)", lambda pred, target: pred.sum()[None]),
]


@pytest.mark.parametrize(("message", "loss_func"), LOSSES)
def test_a_loss_that_is_no_scalar_tensor(data, message, loss_func):
    for valid in (data.valid, None):
        learn = Learner((data.train, valid), plain(), loss_func)
        early(lambda: learn.fit(1), f"loss_func {message}", learn)  # noqa: B023 - called at once
    learn.loss_func = None
    learn.fit(1)


@pytest.mark.parametrize(("value", "batch"), [(NAN, 1), (INF, 5), (NAN, 13)])
def test_a_loss_that_is_not_finite_changes_no_weight(data, batch, value):
    learn = Learner(data, plain(), lambda pred, target: loss(pred, target))
    calls, kept = [], []

    def loss(pred, target):
        calls.append(pred.requires_grad)
        bad = pred.requires_grad and sum(calls) == batch
        kept[:] = [p.detach().clone() for p in learn.model.parameters()] if bad else kept
        return nn.functional.cross_entropy(pred, target) * (value if bad else 1.0)

    with pytest.raises(FloatingPointError, match=rf"loss is {value} at step {batch}.*on_nan"):
        learn.fit(2)
    assert same(kept, list(learn.model.parameters()))
    assert len(learn.recorder.losses) == batch - 1


# ---- loaders -------------------------------------------------------------------------------------


class Batches:
    """Ten batches of digits as the data, changed by `spoil(epoch, number, batch)`."""

    def __init__(self, data, spoil=lambda epoch, number, batch: batch, lengths=(10,)):
        self.data, self.spoil, self.lengths, self.epoch = list(data.train), spoil, lengths, -1

    def __len__(self):
        return self.lengths[min(max(self.epoch + 1, 0), len(self.lengths) - 1)]

    def __iter__(self):
        length, self.epoch = len(self), self.epoch + 1
        for number in range(length):
            yield self.spoil(self.epoch, number, self.data[number % 10])


@pytest.mark.parametrize(("epoch", "number"), [(0, 0), (0, 9), (1, 5)])
def test_a_loader_that_raises_midway(data, epoch, number):
    error = OwnError(5, "disk unplugged")

    def spoil(e, n, batch):
        if (e, n) == (epoch, number):
            raise error
        return batch

    learn = Learner((Batches(data, spoil), data.valid), mlp())
    steps = 10 * epoch + number
    place = f"in epoch {epoch + 1} of 3", f"after {steps} steps"
    raised(lambda: learn.fit(3), error, "raised by the training data", *place)
    assert len(learn.recorder.losses) == steps
    learn.data = data
    assert trains(learn)


NARROW = torch.zeros(30, 5), torch.zeros(30).long()
SPOILT = [
    ((torch.zeros(30, 5), torch.zeros(30).long()), RuntimeError, "shapes cannot be multiplied"),
    ((torch.zeros(30, 64), torch.zeros(29).long()), ValueError, r"\(30\).*\(29\)"),
    ((torch.zeros(30, 64),), ValueError, "data: a batch without target, a tuple of 1; yield"),
    (torch.zeros(30, 64), ValueError, "data: a batch without target, a Tensor; yield"),
    ({"x": torch.zeros(30, 64)}, ValueError, r"a mapping with the keys \['x'\]; put the target"),
    (None, ValueError, "data: a batch without target, a NoneType; yield"),
    ((), ValueError, "data: a batch without target, a tuple of 0; yield"),
    ((torch.zeros(0, 64), torch.zeros(0).long()), ValueError, "data: a batch without samples"),
    ((torch.zeros(30, 64), torch.full((30,), 10)), IndexError, "Target 10 is out of bounds"),
    ((torch.zeros(30, 64).double(), torch.zeros(30).long()), RuntimeError, "dtype"),
    ((torch.full((30, 64), torch.nan), NARROW[1]), FloatingPointError, "clean the data"),
    ((NARROW[0], NARROW[0], NARROW[1]), TypeError, "takes 2 positional arguments but 3"),
    ({"image": NARROW[0], "y": NARROW[1]}, TypeError, "unexpected keyword argument 'image'"),
]


@pytest.mark.parametrize(("batch", "kind", "message"), SPOILT, ids=lambda value: str(value)[:20])
def test_a_wrong_batch_in_the_middle(data, batch, kind, message):
    spoil = lambda epoch, number, good: batch if number == 4 else good  # noqa: E731
    learn = Learner((Batches(data, spoil), data.valid), plain())
    before = surroundings(learn)
    with pytest.raises(kind, match=message) as caught:
        learn.fit(2)
    if kind is not FloatingPointError:
        noted(caught.value, "in epoch 1 of 2, batch 5, after 4 steps")
    assert len(learn.recorder.losses) == 4
    assert surroundings(learn) == before
    learn.data = data
    assert trains(learn)


@pytest.mark.parametrize("lengths", [(10, 10, 7), (10, 10, 12)], ids=str)
def test_a_length_that_changes_is_told_when_the_epoch_begins(data, lengths):
    log = Log()
    learn = Learner((Batches(data, lengths=lengths), data.valid), mlp(), callbacks=log)
    message = rf"data: train has {lengths[-1]} batches in epoch 3, .* planned for 10 in each; give"
    with pytest.raises(ValueError, match=message):
        learn.fit_one_cycle(4, 1e-2)
    assert len(learn.recorder.losses) == 20
    assert log.events[-2:] == ["on_epoch_begin", "on_train_end"]


def test_a_length_that_is_zero_in_a_later_epoch(data):
    learn = Learner((Batches(data, lengths=(10, 0)), data.valid), mlp())
    with pytest.raises(ValueError, match="train is empty"):
        learn.fit(2)
    assert len(learn.recorder.losses) == 10


@pytest.mark.parametrize("found", [7, 12])
def test_a_length_that_lies_is_told(data, found):
    class Liar(Batches):
        def __iter__(self):
            yield from [*self.data, *self.data][:found]

    learn = Learner((Liar(data), data.valid), mlp())
    with pytest.warns(UserWarning, match=f"train yielded {found} batches, its length says 10"):
        learn.fit(1)


class Stream(IterableDataset):
    """Yields so many samples in each pass."""

    def __init__(self, *samples):
        self.samples = list(samples)

    def __iter__(self):
        n = self.samples.pop(0) if len(self.samples) > 1 else self.samples[0]
        return iter([(torch.zeros(64), torch.tensor(1))] * n)


def test_a_stream_that_yields_nothing():
    data = DataLoaders(DataLoader(Stream(0), 3), steps_per_epoch=4)
    learn = Learner(data, plain())
    with pytest.raises(ValueError, match="data: train yielded no batch, though"):
        learn.fit(1)
    assert learn.recorder.history == []


def test_a_stream_that_dries_up_is_told():
    data = DataLoaders(DataLoader(Stream(6, 0), 3), steps_per_epoch=4)
    with pytest.warns(UserWarning, match="train yielded 2 batches, its length says 4"):
        Learner(data, plain()).fit(1)


def one_left(digit_tensors, images=False, **options):
    """A loader of 31 digits in batches of ten, and the same in memory for no options."""
    x, y = (tensor[:31] for tensor in digit_tensors)
    x = x.view(-1, 1, 8, 8) if images else x
    return (
        DataLoader(TensorDataset(x, y), 10, **options)
        if options
        else InMemoryLoader(x, y, batch_size=10)
    )


def pixels(stride):
    """A network with BatchNorm2d on an image of (8 / stride) ^ 2 pixels."""
    return nn.Sequential(
        nn.Conv2d(1, 4, stride, stride),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * (8 // stride) ** 2, 10),
    )


KINDS = [({}, True), ({"shuffle": True}, True), ({"shuffle": False}, False)]


@pytest.mark.parametrize(("options", "valid"), KINDS, ids=str)
@pytest.mark.parametrize("model", [mlp(), pixels(8)], ids=["BatchNorm1d", "one pixel"])
def test_a_last_batch_of_one_with_batch_norm(digit_tensors, model, options, valid):
    images = isinstance(model[0], nn.Conv2d)
    loader = one_left(digit_tensors, images, **options)
    learn = Learner((loader, one_left(digit_tensors, images) if valid else None), model)
    message = "data: 31 samples in batches of batch_size=10 leave a last batch of one.*drop_last"
    early(lambda: learn.fit_one_cycle(1, 1e-2), message, learn)


def test_a_last_batch_of_one_with_batch_norm_inside_of_a_block(digit_tensors):
    learn = Learner((one_left(digit_tensors), None), nn.Sequential(nn.Sequential(mlp())))
    early(lambda: learn.fit(1), "last batch of one", learn)


ALLOWED = [
    (plain, {}, {}),
    (mlp, {"drop_last": True}, {}),
    (lambda: pixels(2), {}, {"images": True}),
    (lambda: pixels(2), {"shuffle": True}, {"images": True}),
    (lambda: nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 10)), {}, {}),
]


@pytest.mark.parametrize(("model", "options", "kind"), ALLOWED)
def test_a_last_batch_of_one_that_does_no_harm(digit_tensors, model, options, kind):
    loader = one_left(digit_tensors, **kind, **options)
    learn = Learner((loader, one_left(digit_tensors, **kind)), model())
    learn.fit(1)
    assert len(learn.recorder.losses) == len(loader)


def test_a_last_batch_of_one_does_no_harm_to_batch_norm_that_is_frozen(digit_tensors):
    model = mlp()
    parts = [[*model[:2].parameters()], [*model[2:].parameters()]]
    learn = Learner((one_left(digit_tensors), None), model, splitter=parts, train_bn=False)
    learn.freeze()
    learn.fit(1)
    assert len(learn.recorder.losses) == 4


class Lines(Dataset):
    """Samples in a file that is kept open."""

    def __init__(self, file, n=30):
        self.file, self.n = file, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.file.seek(i)
        return torch.full((64,), float(ord(self.file.read(1)))), torch.tensor(1)


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "samples"
    path.write_text("x" * 30)
    with path.open() as file:
        yield Lines(file)


def test_a_file_that_was_closed_before(lines):
    lines.file.close()
    learn = Learner((DataLoader(lines, 3), None), plain())
    with pytest.raises(ValueError, match="I/O operation on closed file") as caught:
        learn.fit(1)
    noted(caught.value, "raised by the training data, when batch 1 was read", "after 0 steps")


def test_a_file_that_is_closed_midway(lines):
    class Closes(Callback):
        def on_step_end(self, learn):
            if learn.step == 4:
                lines.file.close()

    learn = Learner((DataLoader(lines, 3), None), plain())
    with pytest.raises(ValueError, match="I/O operation on closed file") as caught:
        learn.fit(1, callbacks=Closes)
    noted(caught.value, "raised by the training data", "in epoch 1 of 1", "after 4 steps")
    assert len(learn.recorder.losses) == 4


# ---- validation data -----------------------------------------------------------------------------

VALIDS = [
    (ValueError, "a batch without target, a tuple of 1", [(torch.zeros(3, 64),)]),
    (ValueError, "a batch without target, a Tensor", [torch.zeros(3, 64)]),
    (ValueError, "a batch without samples", [(torch.zeros(0, 64), torch.zeros(0).long())]),
    (RuntimeError, "shapes cannot be multiplied", [NARROW]),
    (IndexError, "Target 10 is out of bounds", [(torch.zeros(3, 64), torch.full((3,), 10))]),
    (ValueError, r"\(3\).*\(2\)", [(torch.zeros(3, 64), torch.zeros(2).long())]),
]


@pytest.mark.parametrize(("kind", "message", "valid"), VALIDS)
def test_validation_data_that_cannot_be_used_cost_nothing(data, kind, message, valid):
    learn = Learner((data.train, valid), plain())
    before = everything(learn)
    with pytest.raises(kind, match=message):
        learn.fit_one_cycle(3, 1e-2)
    assert same({**everything(learn), "counters": 0}, {**before, "counters": 0})
    learn.data = data
    assert trains(learn)


class Empty(list):
    """Has a length and yields nothing."""

    def __iter__(self):
        return iter(())


def test_validation_data_that_yield_nothing_cost_nothing(data):
    learn = Learner((data.train, Empty([NARROW])), plain())
    early(lambda: learn.fit(2), "valid_loss: the data is empty, it must yield", learn)


@pytest.mark.parametrize("number", [1, 3])
def test_validation_data_that_raise_midway(data, number):
    error = OwnError(9, "disk unplugged")

    class Raises(list):
        def __iter__(self):
            yield from self[:number]
            raise error

    learn = Learner((data.train, Raises(data.valid)), mlp())
    before = surroundings(learn)
    raised(lambda: learn.fit(2), error, "in epoch 1 of 2", "after 10 steps")
    assert surroundings(learn) == before
    learn.data = data
    assert trains(learn)


@pytest.mark.parametrize("value", [NAN, INF])
def test_validation_data_that_are_not_finite(data, value):
    valid = [(torch.full((3, 64), value), torch.zeros(3).long())]
    learn = Learner((data.train, valid), plain())
    with pytest.raises(FloatingPointError, match="valid_loss is nan after step 10"):
        learn.fit(3)


def test_a_broken_metric_given_after_a_fit_costs_nothing(data):
    learn = Learner(data, mlp())
    learn.fit(1)
    learn.metrics = {"m": by_design}
    early(lambda: learn.fit(1), "metrics: 'm' raised ZeroDivisionError: by design", learn)


def test_a_last_batch_of_one_that_comes_with_other_data_costs_nothing(digit_tensors, data):
    learn = Learner(data, mlp())
    learn.fit(1)
    learn.data = DataLoaders(one_left(digit_tensors), data.valid)
    early(lambda: learn.fit(1), "last batch of one", learn)


def test_a_last_batch_of_one_in_a_list(digit_tensors):
    batches = list(one_left(digit_tensors))
    learn = Learner((batches, None), mlp())
    early(lambda: learn.fit(1), "data: .*last batch of one", learn)


@NOTES
@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_model_whose_output_the_loss_cannot_take_is_named(data, kind, valid):
    loaders = data.train, data.valid if valid else None
    learn = Learner(loaders, Odd(OUTPUTS[kind]), nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match=kind) as caught:
        learn.fit(1)
    assert "model" in "".join([str(caught.value), *caught.value.__notes__])


BATCHES = [
    ("[(30, 5), (30, 5)]", (NARROW[0], NARROW[0], NARROW[1])),
    ("{image: (30, 5)}", {"image": NARROW[0], "y": NARROW[1]}),
]


@NOTES
@pytest.mark.parametrize(("text", "batch"), BATCHES)
def test_a_batch_that_the_model_does_not_take_is_described(text, batch):
    learn = Learner(([batch], None), plain())
    with pytest.raises(TypeError, match="argument") as caught:
        learn.fit(1)
    noted(caught.value, "data", text)


@pytest.mark.parametrize(("kind", "message", "valid"), VALIDS)
def test_what_fails_on_the_validation_data_says_so(data, kind, message, valid):
    learn = Learner((data.train, valid), plain())
    with pytest.raises(kind, match=message) as caught:
        learn.fit(1)
    noted(caught.value, "validation data")


def test_a_closed_file_of_the_validation_data_says_so(data, lines):
    lines.file.close()
    learn = Learner((data.train, DataLoader(lines, 3)), plain())
    error = early(lambda: learn.fit(1), "I/O operation on closed file", learn)
    noted(error, "validation data")


@pytest.mark.parametrize("number", [1, 3])
def test_validation_data_that_raise_midway_say_so(data, number):
    class Raises(list):
        def __iter__(self):
            yield from self[:number]
            raise OwnError(9, "disk unplugged")

    learn = Learner((data.train, Raises(data.valid)), mlp())
    with pytest.raises(OwnError) as caught:
        learn.fit(1)
    noted(caught.value, "validation data", f"batch {number + 1}")
