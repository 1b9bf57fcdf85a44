"""The loop: epochs and batches, with every event in its place.

Each of training, epoch, batch and validation is a scope: its begin event, its body, its end event,
which also fires after a signal. A signal ends the scopes up to its own width; an error ends them
all, and only on_train_end fires.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from onecycle import freezing, preflight, snapshot, state
from onecycle.callback import Callback, dispatch, fire, fire_all
from onecycle.data.prefetch import mover
from onecycle.data.reading import Reader
from onecycle.distributed import require_alike
from onecycle.interrupts import Interrupts
from onecycle.metrics import named
from onecycle.notes import batches_of, note, noted
from onecycle.signals import Cancel, CancelBatch, CancelEpoch

if TYPE_CHECKING:
    from torch import Tensor

    from onecycle.trainer import Trainer


UNMET = ("on_backward_end",)  # happens in every batch: the processes meet only if it has a hook


class Saver(Protocol):
    """What saves a run while it is at rest, such as `Checkpoint`.

    Attributes:
        in_validation: whether it saves there, too, when a signal is about to stop the run.
        first_step: steps that must be done before it wants to be asked within an epoch.
    """

    in_validation: bool
    first_step: int

    def begin(self, learn: Trainer, *, resumed: bool) -> None:
        """The run begins, or goes on from a file."""
        ...

    def rest(self, learn: Trainer, *, epoch_over: bool, stopping: bool) -> None:
        """A batch is over or, when `epoch_over`, an epoch; when `stopping` none will follow."""
        ...

    def end(self, learn: Trainer) -> None:
        """The run is finished, and all callbacks have seen its end."""
        ...


class Interrupted(BaseException):
    """Leaves a validation, because a signal waits to be let through."""


class Loop:
    """Takes a learner through its epochs and fires the events of the callbacks it was given.

    Between two batches, and between two epochs, the loop is at rest: all callbacks have seen the
    same events and every signal of theirs has had its effect. Only there a run is saved, and only
    there Ctrl-C or SIGTERM end it.

    Where several processes train together they meet in every batch before its backward pass, and
    at each beginning and end; what one of them has to say there holds for all.
    """

    def __init__(self) -> None:
        self.hooks = dispatch([])
        self.running = False
        self.over = False  # set it, and this batch is the last; its epoch is validated
        self.failed = False  # whether an error or Ctrl-C has ended the run
        self.callbacks: Sequence[Callback] = ()
        self.savers: Sequence[Saver] = ()
        self.asks_from = math.inf  # steps done, from which on savers are asked within an epoch
        self.interrupts = Interrupts()
        self.stop = 0  # a signal of the system that one of several processes has got
        self.reader: Any = None
        self.number = 0
        self.before_validation: list[tuple[str, dict[str, Any]]] | None = None
        self._checked: list[Any] = []

    def run(
        self,
        learn: Trainer,
        epochs: range,
        n_epochs: int,
        callbacks: Sequence[Callback],
        *,
        savers: Sequence[Saver] = (),
        saved: dict[str, Any] | None = None,
        resumed: bool = False,
        aside: Reader | None = None,
        number: int | None = None,
    ) -> None:
        """Train the `epochs` of a plan of `n_epochs`; on_train_end fires whatever happens.

        Args:
            learn: what to train.
            epochs: those to train now.
            n_epochs: of the plan.
            callbacks: whose hooks to call, in order.
            savers: who may save the run.
            saved: the state of a run to go on with, see `state.capture`.
            resumed: it is of this very run, which `savers` have saved.
            aside: reads the batches of a rehearsal, which does not validate.
            number: of the first epoch over all fits, which decides the order of its batches.

        Raises:
            RuntimeError: a run is under way already.
        """
        self.require_rest()
        hooks = dispatch(callbacks)
        learn.world.begin()
        _plan(learn, epochs, n_epochs)
        self.callbacks, self.savers, self.over, self.stop = callbacks, savers, False, 0
        self.reader = aside or learn.data.reader()
        # Epochs are numbered over all fits, so that no two of them have the same order.
        self.number = max(len(learn.recorder.history), epochs.start) if number is None else number
        modes = snapshot.modes_preserved(learn.model)
        with self._held(), self.interrupts, learn.network.running(), modes:
            try:
                self.hooks, self.running = hooks, True
                learn.world.meet("fit")
                learn.world.forget()
                with learn.network.together(learn.world):
                    with suppress(Cancel):
                        self._train(learn, epochs, saved, resumed=resumed, validate=aside is None)
                    learn.training_step.synchronize(learn)
                self._end(learn)
                for saver in savers:
                    saver.end(learn)
                learn.world.end()
            except BaseException as error:
                cause = learn.world.failed(error)
                if self.running:
                    _note_place(learn, cause)
                    self._end(learn, cause)
                if cause is error:
                    raise
                self.interrupts.pending.clear()  # the run has ended, and is to say why
                raise cause from error

    def meet(
        self, learn: Trainer, place: str, signal: Cancel | None = None, *values: float
    ) -> Tensor:
        """Raise the widest signal of all processes, and return their `values`, a row for each.

        A signal of the system that has come to one of them is noted for the next rest of all.
        """
        met = learn.world.meet(place, signal, self.interrupts.number, values)
        self.stop = self.stop or met.stop
        return met.values

    def tell(self, learn: Trainer, signal: Cancel) -> None:
        """Raise a signal of a batch, in the other processes as well, unless it came from them."""
        if signal is not learn.world.agreed:
            self.meet(learn, "batch", signal)
        raise signal

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Let go of everything that the run was given, when it is over."""
        try:
            yield
        finally:
            self.reader.end()
            self.callbacks, self.reader = (), None
            self.keep_asking()
            self.before_validation = None

    def fire_together(self, learn: Trainer, event: str) -> None:
        """Fire an event whose signals have to reach all processes before they go on."""
        signal: Cancel | None = None
        hooks = self.hooks[event]
        try:
            if hooks:
                fire(hooks, learn)
        except Cancel as raised:
            signal = raised
        needless = learn.world.alone or (event in UNMET and not hooks)
        if signal is not None or not needless:
            self.meet(learn, event, signal)

    def rest(self, learn: Trainer, *, epoch_over: bool = False) -> None:
        """Have the run saved where that is due, and let a signal through that was held back."""
        if epoch_over and not learn.world.alone:
            self.meet(learn, "epoch")
        stopping = self.stopping(learn)
        if not (self.savers or stopping):
            return
        failure: Exception | None = None
        for saver in self.savers:
            try:
                saver.rest(learn, epoch_over=epoch_over, stopping=stopping)
            except Cancel:  # of another process, which is not at rest
                raise
            except Exception as error:  # noqa: BLE001 - raised below, once the others have saved
                failure = failure or error
        if stopping:
            if not learn.world.alone:  # or who has nothing to write ends, and so who writes
                self.meet(learn, "stop")
            number, self.stop = self.stop, 0
            self.interrupts.deliver(number)
        if failure is not None:
            raise failure

    def stopping(self, learn: Trainer) -> bool:
        """Tell whether a signal of the system is to be let through, which all know of."""
        return bool(self.interrupts.pending if learn.world.alone else self.stop)

    def keep_asking(self, *savers: Saver) -> None:
        """Ask these savers from now on, and no others."""
        self.savers = savers
        self.asks_from = min((saver.first_step for saver in savers), default=math.inf)

    def check(self, learn: Trainer) -> None:
        """Look at what the end of the epoch will need, unless the very same was looked at."""
        own = learn.model, learn.loss_func, learn.data.train, learn.data.valid
        looked_at = [*own, *named(learn.metrics).values()]
        if list(map(id, looked_at)) != list(map(id, self._checked)):
            preflight.check_last_batch(learn)
            preflight.check_validation(learn)
            self._checked = looked_at

    def require_rest(self) -> None:
        """Refuse to begin what a callback asks for in the middle of a run."""
        if self.running:
            raise RuntimeError("a fit is running already: a callback cannot start another one")

    def _train(
        self,
        learn: Trainer,
        epochs: range,
        saved: dict[str, Any] | None,
        *,
        resumed: bool,
        validate: bool,
    ) -> None:
        """Fire on_train_begin and train the epochs, or those that a saved run has left."""
        place = saved["run"]["place"] if saved else {"epoch": epochs.start, "batches": 0}
        learn.epoch, learn.batch_index = place["epoch"], place["batches"] - 1
        learn.training_step.begin(learn.modules)
        _begin(learn, "on_train_begin")
        if saved:
            # In mid-epoch once more, when on_epoch_begin has had its effects.
            state.restore(learn, saved, read=not place["batches"])
        for saver in self.savers:
            saver.begin(learn, resumed=resumed)
        self.keep_asking(*self.savers)
        if not place["batches"]:
            saved = None
        for epoch in range(place["epoch"], epochs.stop):
            learn.epoch, learn.scores = epoch, {}
            freezing.train(learn.model, learn.train_bn)
            body = partial(_epoch, learn, saved, validate)
            _scope(learn, "on_epoch_begin", body, "on_epoch_end", CancelEpoch)
            learn.training_step.guard.check_validation(learn)
            self.rest(learn, epoch_over=True)
            self.number += 1
            saved = None
            if self.over:
                break

    def _end(self, learn: Trainer, failure: BaseException | None = None) -> None:
        """Forget the batch and fire on_train_end; an earlier failure goes before one in there."""
        learn.batch = learn.pred = learn.loss = None
        self.failed = failure is not None
        try:
            try:
                learn.training_step.end()
            finally:
                fire_all(self.hooks["on_train_end"], learn)
        except BaseException as error:
            if failure is None:
                raise
            note(failure, f"on_train_end failed too: {error!r}")
        finally:
            self.hooks, self.running = dispatch([]), False


def _note_place(learn: Trainer, error: BaseException) -> None:
    if isinstance(error, Exception) and not isinstance(error, FloatingPointError):
        place = f"in epoch {learn.epoch + 1} of {learn.n_epochs}, batch {learn.batch_index + 1}"
        note(error, f"{place}, after {learn.step} steps")


def _plan(learn: Trainer, epochs: range, n_epochs: int) -> None:
    """Set the counters: a step is an optimizer update, `accumulate` batches or what is left."""
    learn.batches_per_epoch = learn.data.steps_per_epoch
    updates = learn.steps_per_epoch
    learn.n_epochs, learn.stop_epoch = n_epochs, epochs.stop
    learn.total_steps = n_epochs * updates
    learn.epoch, learn.step = epochs.start, epochs.start * updates


def _epoch(learn: Trainer, saved: dict[str, Any] | None, validate: bool) -> None:
    """Train on every batch of an epoch, or on those that a saved run has left; then validate."""
    loop = learn.loop
    learn.training_step.drop()
    learn.batch_index = -1
    if saved:
        state.restore(learn, saved)
    _check(learn, validate)
    done = learn.batch_index + 1
    step = partial(learn.training_step, learn)
    move = mover(learn.device)
    # Where a batch cannot be read because a signal has ended the workers, too, that goes before.
    failed = partial(loop.rest, learn) if learn.world.alone else lambda: None
    reading = batches_of(loop.reader(loop.number, done), "training", failed)
    # Closed at once, or an error's traceback would keep the loader and its workers.
    with closing(reading):
        for learn.batch_index, batch in enumerate(reading, start=done):
            learn.batch = move(batch)
            learn.pred = learn.loss = None
            _scope(learn, "on_batch_begin", step, "on_batch_end", CancelBatch)
            if learn.step >= loop.asks_from or loop.stop or loop.interrupts.pending:
                loop.rest(learn)
            if loop.over:
                break
    if not learn.world.alone:
        require_alike(loop.meet(learn, "batch", None, 0.0, 0.0, 1.0))
    if not loop.over:
        _check_length(learn.batch_index + 1, learn.batches_per_epoch)
    learn.training_step.flush(learn)
    if validate and learn.data.valid is not None:
        _validation(learn)


def _validation(learn: Trainer) -> None:
    """Validate; what was interrupted is done again, so what callbacks saw of it does not count."""
    loop = learn.loop
    saving = any(saver.in_validation for saver in loop.savers)
    loop.before_validation = state.own_states(loop.callbacks) if saving else None
    try:
        while True:
            try:
                body = partial(_validate, learn)
                return _scope(learn, "on_validate_begin", body, "on_validate_end", CancelBatch)
            except (Interrupted, Exception) as error:
                if not loop.stopping(learn) or isinstance(error, Cancel):
                    raise
                # Whoever handles the signal may let the run go on.
                loop.rest(learn)
    finally:
        loop.before_validation = None


def _validate(learn: Trainer) -> None:
    held: list[Cancel] = []

    def watch(batch: Any, pred: Any, loss: Any) -> None:
        learn.batch, learn.pred, learn.loss = batch, pred, loss
        try:
            learn.fire("on_validate_batch_end")
        except CancelBatch:  # the batch is over already
            pass
        except Cancel as raised:
            if learn.world.alone:
                raise
            held.append(raised)  # the others go on with this validation
        if learn.loop.stopping(learn):
            raise Interrupted

    if learn.data.valid is not None:  # a hook may have taken it away
        if learn.loop.stop:  # all know of it, and not each of them need have a batch
            raise Interrupted
        with noted("on the validation data"):
            scores = learn.evaluate(learn.data.valid, watch)
        if not learn.world.alone:
            learn.loop.meet(learn, "validated", max(held, key=lambda one: one.width, default=None))
        learn.scores = scores


def _scope(
    learn: Trainer, begin: str, body: Callable[[], None], end: str, cancel: type[Cancel]
) -> None:
    """Fire `begin`, run `body`, fire `end`; absorb a signal that is not wider than `cancel`."""
    signal: Cancel | None = None
    try:
        _begin(learn, begin)
        body()
    except Cancel as raised:
        signal = raised
    try:
        fire(learn.loop.hooks[end], learn)
    except Cancel as raised:
        if signal is None or raised.width > signal.width:
            signal = raised
    wide = signal if signal is not None and signal.width > cancel.width else None
    if end != "on_batch_end":
        learn.loop.meet(learn, end, wide)
    elif wide is not None:
        # The others hear of it in the next batch, and do not go on with that.
        learn.loop.tell(learn, wide)


def _begin(learn: Trainer, event: str) -> None:
    """Fire an event that begins something."""
    if event != "on_batch_begin":
        learn.loop.fire_together(learn, event)
        return
    try:
        fire(learn.loop.hooks[event], learn)
    except Cancel as raised:
        learn.loop.tell(learn, raised)
    if learn.network.joins_forward and not learn.world.alone:
        # Nobody may be alone in the forward pass.
        require_alike(learn.loop.meet(learn, "batch"))


def _check(learn: Trainer, validate: bool) -> None:
    """Refuse what would fail, or be wrong, at the end of this epoch."""
    length = learn.data.steps_per_epoch
    if length != learn.batches_per_epoch:
        raise ValueError(
            f"data: train has {length} batches in epoch {learn.epoch + 1}, and the fit was planned "
            f"for {learn.batches_per_epoch} in each; give DataLoaders(steps_per_epoch=...), or "
            "change the data between two fits"
        )
    if validate:
        learn.loop.check(learn)


def _check_length(found: int, said: int) -> None:
    if found == 0:
        raise ValueError("data: train yielded no batch, though its length is not 0")
    if found != said:
        warnings.warn(
            f"train yielded {found} batches, its length says {said}: the schedule was planned for "
            "that and will not end where it should",
            stacklevel=2,
        )
