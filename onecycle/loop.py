"""The loop: epochs and batches, with every event in its place.

Each of training, epoch, batch and validation is a scope: its begin event, its body, its end event,
which also fires after a signal. A signal ends the scopes up to its own width; an error ends them
all, and only on_train_end fires.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from onecycle import batch as batches
from onecycle import freezing, state
from onecycle.callback import (
    Callback,
    Cancel,
    CancelBatch,
    CancelEpoch,
    dispatch,
    fire,
    fire_all,
    note,
)

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

Reader = Callable[[int], Iterator[Any]]


class Loop:
    """Takes a learner through its epochs and fires the events of the callbacks it was given."""

    def __init__(self) -> None:
        self.hooks = dispatch([])
        self.running = False

    def fire(self, event: str, learn: Trainer) -> None:
        """Call the hooks of `event`."""
        fire(self.hooks[event], learn)

    def run(
        self,
        learn: Trainer,
        epochs: range,
        n_epochs: int,
        callbacks: list[Callback],
        rehearsed: Reader | None = None,
    ) -> None:
        """Train the `epochs` of a plan of `n_epochs`; on_train_end fires whatever happens.

        Args:
            learn: what to train.
            epochs: those to train now.
            n_epochs: of the plan.
            callbacks: whose hooks to call, in order.
            rehearsed: reads the batches of a rehearsal, which does not validate.

        Raises:
            RuntimeError: a run is under way already.
        """
        self.require_rest()
        hooks = dispatch(callbacks)
        _plan(learn, epochs, n_epochs)
        # Epochs are numbered over all fits, so that no two of them have the same order.
        first = max(len(learn.recorder.history), epochs.start)
        read = rehearsed or learn.data.reader()
        validate = learn.data.valid is not None and rehearsed is None
        failure: BaseException | None = None
        with state.modes_preserved(learn.model):
            try:
                self.hooks, self.running = hooks, True
                learn.fire("on_train_begin")
                for number, epoch in enumerate(epochs, start=first):
                    learn.epoch, learn.scores = epoch, {}
                    freezing.train(learn.model, learn.train_bn)
                    body = partial(_epoch, learn, partial(read, number), validate)
                    _scope(learn, "on_epoch_begin", body, "on_epoch_end", CancelEpoch)
            except Cancel:
                pass
            except BaseException as error:
                failure = error
                raise
            finally:
                self._end(learn, failure)

    def require_rest(self) -> None:
        """Refuse to begin what a callback asks for in the middle of a run."""
        if self.running:
            raise RuntimeError("a fit is running already: a callback cannot start another one")

    def _end(self, learn: Trainer, failure: BaseException | None) -> None:
        """Forget the batch and fire on_train_end; an earlier failure goes before one in there."""
        learn.batch = learn.pred = learn.loss = None
        try:
            try:
                learn.training_step.drop()
            finally:
                fire_all(self.hooks["on_train_end"], learn)
        except BaseException as error:
            if failure is None:
                raise
            note(failure, f"on_train_end failed too: {error!r}")
        finally:
            self.hooks, self.running = dispatch([]), False


def _plan(learn: Trainer, epochs: range, n_epochs: int) -> None:
    """Set the counters: a step is an optimizer update, `accumulate` batches or what is left."""
    learn.batches_per_epoch = learn.data.steps_per_epoch
    updates = learn.steps_per_epoch
    learn.n_epochs, learn.stop_epoch = n_epochs, epochs.stop
    learn.total_steps = n_epochs * updates
    learn.epoch, learn.step = epochs.start, epochs.start * updates


def _epoch(learn: Trainer, read: Callable[[], Iterator[Any]], validate: bool) -> None:
    learn.training_step.drop()
    learn.batch_index = -1
    step = partial(learn.training_step, learn)
    for learn.batch_index, batch in enumerate(read()):
        learn.batch = batches.to_device(batch, learn.device)
        learn.pred = learn.loss = None
        _scope(learn, "on_batch_begin", step, "on_batch_end", CancelBatch)
    _check_length(learn.batch_index + 1, learn.batches_per_epoch)
    learn.training_step.flush(learn)
    if validate:
        body = partial(_validate, learn)
        _scope(learn, "on_validate_begin", body, "on_validate_end", CancelBatch)


def _validate(learn: Trainer) -> None:
    def watch(batch: Any, pred: Any, loss: Any) -> None:
        learn.batch, learn.pred, learn.loss = batch, pred, loss
        with suppress(CancelBatch):  # the batch is over already
            learn.fire("on_validate_batch_end")

    if learn.data.valid is not None:
        learn.scores = learn.evaluate(learn.data.valid, watch)


def _scope(
    learn: Trainer, begin: str, body: Callable[[], None], end: str, cancel: type[Cancel]
) -> None:
    """Fire `begin`, run `body`, fire `end`; absorb a signal that is not wider than `cancel`."""
    signal: Cancel | None = None
    try:
        learn.fire(begin)
        body()
    except Cancel as raised:
        signal = raised
    try:
        learn.fire(end)
    except Cancel as raised:
        if signal is None or raised.width > signal.width:
            signal = raised
    if signal is not None and signal.width > cancel.width:
        raise signal


def _check_length(found: int, said: int) -> None:
    if found == 0:
        raise ValueError("data: train yielded no batch, though its length is not 0")
    if found != said:
        warnings.warn(
            f"train yielded {found} batches, its length says {said}: the schedule was planned for "
            "that and will not end where it should",
            stacklevel=2,
        )
