"""The order of events is the contract: golden lists for plain runs, signals, errors, Ctrl-C."""

import sys

import pytest
import torch
from helpers import Log, mlp, plain

from onecycle import Callback, CancelBatch, CancelEpoch, CancelTrain, DataLoaders, Learner
from onecycle.callback import EVENTS, FASTAI_EVENTS, as_callbacks, dispatch

BATCH = [
    "on_batch_begin",
    "on_loss_begin",
    "on_backward_begin",
    "on_backward_end",
    "on_step_end",
    "on_batch_end",
]
VALID = ["on_validate_begin", "on_validate_batch_end", "on_validate_end"]
EPOCH = ["on_epoch_begin", *BATCH, *BATCH, *VALID, "on_epoch_end"]


@pytest.fixture
def tiny():
    """Two training batches and one for validation."""
    batch = (torch.randn(8, 64), torch.arange(8))
    return DataLoaders([batch] * 2, [batch])


def run(data, at=None, epochs=1, **options):
    log = Log(at)
    learn = Learner(data, mlp(), callbacks=[log], **options)
    learn.fit(epochs)
    return log.events


def test_plain_run(tiny):
    assert run(tiny, epochs=2) == ["on_train_begin", *EPOCH, *EPOCH, "on_train_end"]


def test_without_validation(tiny):
    events = run((tiny.train, None))
    assert events == [
        "on_train_begin",
        "on_epoch_begin",
        *BATCH,
        *BATCH,
        "on_epoch_end",
        "on_train_end",
    ]


def test_accumulation_steps_at_the_second_batch_only(tiny):
    first = [event for event in BATCH if event != "on_step_end"]
    epoch = ["on_epoch_begin", *first, *BATCH, *VALID, "on_epoch_end"]
    assert run(tiny, accumulate=2) == ["on_train_begin", *epoch, "on_train_end"]


@pytest.mark.parametrize("event", BATCH[:-1])
def test_cancel_batch_goes_to_the_end_of_the_batch(tiny, event):
    cut = [*BATCH[: BATCH.index(event) + 1], "on_batch_end"]
    epoch = ["on_epoch_begin", *cut, *BATCH, *VALID, "on_epoch_end"]
    expected = ["on_train_begin", *epoch, "on_train_end"]
    assert run(tiny, {(event, 1): CancelBatch()}) == expected


def test_cancel_epoch_in_a_batch_skips_validation(tiny):
    cut = ["on_epoch_begin", "on_batch_begin", "on_batch_end", "on_epoch_end"]
    expected = ["on_train_begin", *cut, *EPOCH, "on_train_end"]
    assert run(tiny, {("on_batch_begin", 1): CancelEpoch()}, epochs=2) == expected


def test_cancel_epoch_in_validation_ends_validation(tiny):
    events = run(tiny, {("on_validate_batch_end", 1): CancelEpoch()})
    assert events == ["on_train_begin", *EPOCH, "on_train_end"]


@pytest.mark.parametrize(
    ("event", "ends"),
    [
        ("on_train_begin", ["on_train_end"]),
        ("on_epoch_begin", ["on_epoch_end", "on_train_end"]),
        ("on_loss_begin", ["on_batch_end", "on_epoch_end", "on_train_end"]),
        ("on_batch_end", ["on_epoch_end", "on_train_end"]),
        ("on_validate_batch_end", ["on_validate_end", "on_epoch_end", "on_train_end"]),
        ("on_epoch_end", ["on_train_end"]),
    ],
)
def test_cancel_train_fires_every_end_that_was_begun(tiny, event, ends):
    events = run(tiny, {(event, 1): CancelTrain()}, epochs=3)
    assert events[events.index(event) + 1 :] == ends


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("event", [event for event in EVENTS if event != "on_train_end"])
def test_an_error_goes_straight_to_the_end_and_out(tiny, event, error):
    log = Log({(event, 1): error})
    learn = Learner(tiny, mlp(), callbacks=[log])
    with pytest.raises(type(error)) as caught:
        learn.fit(2)
    assert caught.value is error
    assert log.events[log.events.index(event) + 1 :] == ["on_train_end"]
    learn.callbacks.clear()
    learn.fit(1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no notes")
def test_an_error_in_a_hook_names_callback_and_event(tiny):
    with pytest.raises(ZeroDivisionError) as caught:
        run(tiny, {("on_loss_begin", 1): ZeroDivisionError()})
    assert caught.value.__notes__ == [
        "raised by the callback Log in on_loss_begin",
        "in epoch 1 of 1, batch 1, after 0 steps",
    ]


def test_every_callback_gets_its_last_event_even_when_one_fails_in_it(tiny):
    first, second = Log({("on_train_end", 1): ZeroDivisionError()}), Log()
    with pytest.raises(ZeroDivisionError):
        Learner(tiny, mlp(), callbacks=[first, second]).fit(1)
    assert second.events[-1] == "on_train_end"


def test_a_signal_takes_effect_when_all_have_seen_the_event(tiny):
    first, second = Log({("on_loss_begin", 1): CancelTrain()}), Log()
    Learner(tiny, mlp(), callbacks=[first, second]).fit(1)
    assert first.events == second.events


def test_the_widest_of_two_signals_holds(tiny):
    train, batch = (Log({("on_loss_begin", 1): s}) for s in (CancelTrain(), CancelBatch()))
    Learner(tiny, mlp(), callbacks=[train, batch]).fit(2)
    assert train.events.count("on_epoch_begin") == 1


def test_a_cancelled_batch_changes_nothing_and_is_not_recorded(tiny):
    learn = Learner(tiny, mlp(), callbacks=[Log({("on_backward_end", 1): CancelBatch()})])
    learn.fit(1)
    assert learn.step == len(learn.recorder.losses) == 1
    assert all(p.grad is None for p in learn.model.parameters())


def test_hooks_see_what_the_contract_says(tiny):
    seen = {}

    class Look(Callback):
        def on_batch_begin(self, learn):
            seen["batch"] = learn.batch is not None and learn.pred is None
            learn.batch = (learn.batch[0] * 0, learn.batch[1])

        def on_loss_begin(self, learn):
            seen["pred"] = learn.pred.shape == (8, 10)

        def on_backward_begin(self, learn):
            seen["loss"] = learn.loss.requires_grad and learn.batch[0].sum() == 0

        def on_backward_end(self, learn):
            seen["grad"] = learn.model[4].bias.grad is not None

        def on_step_end(self, learn):
            seen["step"] = learn.step

        def on_epoch_end(self, learn):
            seen["row"] = learn.recorder.history[-1]["valid_loss"] == learn.scores["valid_loss"]

        def on_train_end(self, learn):
            seen["progress"] = learn.progress

    Learner(tiny, mlp(), callbacks=[Look]).fit(1)
    assert seen == {
        "batch": True,
        "pred": True,
        "loss": True,
        "grad": True,
        "step": 2,
        "row": True,
        "progress": 1.0,
    }


def test_an_unknown_event_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match=r"on_batch_ends is no event; did you mean on_batch_end\?"):
        type("Typo", (Callback,), {"on_batch_ends": lambda self, learn: None})


@pytest.mark.parametrize("name", FASTAI_EVENTS)
def test_a_name_of_fastais_is_refused_with_ours(name):
    with pytest.raises(TypeError, match=rf"{name} is no event; did you mean on_\w+\?"):
        type("Habit", (Callback,), {name: lambda self, learn: None})


def test_only_overridden_hooks_are_dispatched():
    log = Log()
    hooks = dispatch([Callback(), log])
    assert {event: len(found) for event, found in hooks.items()} == dict.fromkeys(EVENTS, 1)
    assert not any(dispatch([Callback()]).values())


def test_callbacks_may_be_classes():
    assert [type(cb) for cb in as_callbacks([Log, Log()])] == [Log, Log]
    assert type(as_callbacks(Log)[0]) is Log


def test_a_fit_inside_a_fit_is_refused(tiny):
    class Nested(Callback):
        def on_epoch_begin(self, learn):
            learn.fit(1)

    with pytest.raises(RuntimeError, match="running already"):
        Learner(tiny, mlp(), callbacks=[Nested]).fit(1)


@pytest.mark.parametrize("event", BATCH[:4])
def test_a_cancelled_batch_counts_for_nothing(event):
    torch.manual_seed(5)
    first, second = ((torch.randn(8, 64), torch.arange(8)) for _ in range(2))
    cut = Learner(([first, second], None), plain(), callbacks=[Log({(event, 1): CancelBatch()})])
    alone = Learner(([second], None), plain())
    for learn in (cut, alone):
        learn.fit(1, 0.1)
    assert torch.equal(cut.model.weight, alone.model.weight)


def test_a_batch_cancelled_before_its_gradients_leaves_the_accumulated_ones():
    torch.manual_seed(5)
    a, b, c = ((torch.randn(8, 64), torch.arange(8)) for _ in range(3))
    cancel = Log({("on_loss_begin", 2): CancelBatch()})
    cut = Learner(([a, b, c], None), plain(), callbacks=[cancel], accumulate=2)
    whole = Learner(([a, c], None), plain(), accumulate=2)
    for learn in (cut, whole):
        learn.fit(1, 0.1)
    assert torch.equal(cut.model.weight, whole.model.weight)


def test_gradients_left_by_a_cancelled_last_batch_make_a_step(tiny):
    log = Log({("on_loss_begin", 2): CancelBatch()})
    cut = Learner((tiny.train, None), plain(), callbacks=[log], accumulate=2)
    alone = Learner((tiny.train[:1], None), plain())
    for learn in (cut, alone):
        learn.fit(1, 0.1)
    assert torch.equal(cut.model.weight, alone.model.weight)
    assert log.events[-5:] == [
        "on_batch_end",
        "on_backward_end",
        "on_step_end",
        "on_epoch_end",
        "on_train_end",
    ]


def test_cancel_batch_in_validation_goes_on_with_the_next(tiny):
    log = Log({("on_validate_batch_end", 1): CancelBatch()})
    learn = Learner((tiny.train, tiny.valid * 3), plain(), callbacks=[log])
    learn.fit(1)
    assert log.events.count("on_validate_batch_end") == 3
    assert "valid_loss" in learn.scores


def test_a_narrower_signal_in_an_end_event_does_not_replace_a_wider(tiny):
    log = Log({("on_batch_begin", 1): CancelTrain(), ("on_batch_end", 1): CancelEpoch()})
    Learner(tiny, plain(), callbacks=[log]).fit(3)
    assert log.events.count("on_epoch_begin") == 1


def test_gradients_are_cleared_when_the_step_has_ended(tiny):
    class Look(Callback):
        def on_step_end(self, learn):
            assert all(p.grad is None for p in learn.model.parameters())

    Learner(tiny, plain(), callbacks=[Look]).fit(1)


def test_nothing_is_left_after_a_fit_that_failed(tiny):
    learn = Learner(tiny, plain(), callbacks=[Log({("on_backward_end", 2): ZeroDivisionError()})])
    with pytest.raises(ZeroDivisionError):
        learn.fit(1)
    assert learn.batch is learn.pred is learn.loss is learn.model.weight.grad is None


def test_the_first_error_goes_before_one_in_the_last_event(tiny):
    log = Log({("on_loss_begin", 1): KeyError("mine"), ("on_train_end", 1): ValueError("later")})
    with pytest.raises(KeyError, match="mine"):
        Learner(tiny, plain(), callbacks=[log]).fit(1)


def test_a_fit_in_the_last_event_is_refused(tiny):
    class Again(Callback):
        def on_train_end(self, learn):
            learn.fit(1)

    learn = Learner(tiny, plain())
    with pytest.raises(RuntimeError, match="running already"):
        learn.fit(1, callbacks=[Again])
    learn.fit(1)


def test_an_epoch_is_read_after_its_begin(tiny):
    order = []

    class Loader(list):
        def __iter__(self):
            order.append("read")
            return super().__iter__()

    class Look(Callback):
        def on_epoch_begin(self, learn):
            order.append("begin")

    Learner((Loader(tiny.train), None), plain(), callbacks=[Look]).fit(2)
    assert order == ["begin", "read"] * 2


def test_a_misspelt_event_of_a_mixin_is_refused():
    class Mixin:
        def on_fit_end(self, learn): ...

    with pytest.raises(TypeError, match="on_fit_end is no event"):
        type("Mixed", (Mixin, Callback), {})


def test_a_callback_class_that_needs_arguments_is_asked_for_by_instance():
    class Needs(Callback):
        def __init__(self, bound):
            self.bound = bound

    with pytest.raises(TypeError, match=r"callbacks: give an instance.*bound"):
        as_callbacks([Needs])


def test_a_failure_while_ending_goes_after_the_first_and_locks_nothing(tiny):
    class Breaks(Callback):
        def on_loss_begin(self, learn):
            learn.opt.zero_grad = None
            raise KeyError("mine")

    log = Log()
    learn = Learner(tiny, plain())
    with pytest.raises(KeyError, match="mine"):
        learn.fit(1, callbacks=[Breaks, log])
    assert log.events[-1] == "on_train_end"
    del learn.opt.zero_grad
    learn.fit(1)


@pytest.mark.parametrize("hook", [lambda self: None, lambda self, epoch, logs=None: None])
def test_a_hook_takes_the_learner_and_nothing_else(hook):
    with pytest.raises(TypeError, match=r"Own.on_epoch_end must take \(self, learn\)"):
        type("Own", (Callback,), {"on_epoch_end": hook})


def test_a_hook_may_take_anything():
    type("Own", (Callback,), {"on_epoch_end": lambda self, *args: None})
