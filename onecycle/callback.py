"""The contract of callbacks: the events, the base class, the signals that stop, the dispatch.

The loop, with every event in its place; `learn` is the Learner, the only argument of every hook:

    on_train_begin
      on_epoch_begin
        on_batch_begin          learn.batch is there, on the device; replace it to change it
          on_loss_begin         learn.pred is there
          on_backward_begin     learn.loss is there
          on_backward_end       gradients are there, unscaled and clipped when a step follows
          on_step_end           the optimizer has stepped; not fired while gradients accumulate
        on_batch_end
        on_validate_begin
          on_validate_batch_end   learn.batch, learn.pred and learn.loss of a validation batch
        on_validate_end
      on_epoch_end              the history's row of this epoch is complete
    on_train_end                always fires, whatever happened

An event reaches every callback that has the hook, in the order of the list. A signal raised in a
hook takes effect when its event is over, so all callbacks see the same events; of several signals
the widest holds.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from onecycle.notes import note
from onecycle.signals import Cancel

if TYPE_CHECKING:
    from onecycle.learner import Learner
    from onecycle.trainer import Trainer

EVENTS = (
    "on_train_begin",
    "on_epoch_begin",
    "on_batch_begin",
    "on_loss_begin",
    "on_backward_begin",
    "on_backward_end",
    "on_step_end",
    "on_batch_end",
    "on_validate_begin",
    "on_validate_batch_end",
    "on_validate_end",
    "on_epoch_end",
    "on_train_end",
)

# What users of fastai type by habit; a hook of that name would never be called.
FASTAI_EVENTS = {
    "before_fit": "on_train_begin",
    "before_epoch": "on_epoch_begin",
    "before_train": "on_epoch_begin",
    "before_batch": "on_batch_begin",
    "after_pred": "on_loss_begin",
    "after_loss": "on_backward_begin",
    "before_backward": "on_backward_begin",
    "after_backward": "on_backward_end",
    "before_step": "on_backward_end",
    "after_step": "on_step_end",
    "after_batch": "on_batch_end",
    "after_train": "on_validate_begin",
    "before_validate": "on_validate_begin",
    "after_validate": "on_validate_end",
    "after_epoch": "on_epoch_end",
    "after_fit": "on_train_end",
}


class Callback:
    """Base of all callbacks: override the hooks you need; each takes the learner.

    A callback keeps no tie to a learner and may be used again. What it must remember when a run is
    resumed goes through `state_dict` and `load_state_dict`, as plain numbers, strings, lists, dicts
    and tensors.

    Raises:
        TypeError: when a subclass defines an `on_...` method that is no event; it names the nearest
            one.

    >>> class PrintLoss(Callback):
    ...     def on_batch_end(self, learn):
    ...         print(f"{learn.step}: {learn.loss:.3f}")
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a method that looks like a hook and would never be called."""
        super().__init_subclass__(**kwargs)
        for name in dir(cls):
            near = FASTAI_EVENTS.get(name)
            if name.startswith("on_") and name not in EVENTS:
                near = difflib.get_close_matches(name, EVENTS, n=1, cutoff=0.0)[0]
            if near is not None:
                raise TypeError(f"{cls.__name__}.{name} is no event; did you mean {near}?")
            if name in EVENTS and not _takes_learn(inspect.getattr_static(cls, name)):
                raise TypeError(f"{cls.__name__}.{name} must take (self, learn) and nothing else")

    def on_train_begin(self, learn: Learner) -> None:
        """Fit begins: the plan (n_epochs, total_steps) is known."""

    def on_epoch_begin(self, learn: Learner) -> None:
        """An epoch begins: the model is in training mode."""

    def on_batch_begin(self, learn: Learner) -> None:
        """A training batch is in learn.batch, on the device."""

    def on_loss_begin(self, learn: Learner) -> None:
        """The model's output is in learn.pred."""

    def on_backward_begin(self, learn: Learner) -> None:
        """The loss of the batch is in learn.loss."""

    def on_backward_end(self, learn: Learner) -> None:
        """Gradients are there, unscaled and clipped when a step follows."""

    def on_step_end(self, learn: Learner) -> None:
        """The optimizer has stepped and gradients are cleared; learn.step counts this step."""

    def on_batch_end(self, learn: Learner) -> None:
        """A training batch is over, cancelled or not."""

    def on_validate_begin(self, learn: Learner) -> None:
        """The epoch's validation begins."""

    def on_validate_batch_end(self, learn: Learner) -> None:
        """A validation batch is over."""

    def on_validate_end(self, learn: Learner) -> None:
        """The epoch's validation is over; its results are in learn.scores."""

    def on_epoch_end(self, learn: Learner) -> None:
        """An epoch is over and its row is the last of learn.recorder.history."""

    def on_train_end(self, learn: Learner) -> None:
        """Fit is over, by its plan, a signal, an error or Ctrl-C."""

    def state_dict(self) -> dict[str, Any]:
        """Return what must survive a resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""


Hook = Callable[[Any], None]
Hooks = dict[str, tuple[Hook, ...]]


def as_callbacks(callbacks: Any) -> list[Callback]:
    """Return a list of callbacks from none, one or several, instances or classes.

    >>> as_callbacks(Callback)  # doctest: +ELLIPSIS
    [<onecycle.callback.Callback object at ...>]
    """
    if callbacks is None:
        return []
    single = isinstance(callbacks, (Callback, type, str)) or not isinstance(callbacks, Iterable)
    items = [callbacks] if single else list(callbacks)
    result = [_made(item) for item in items]
    for item in result:
        if not isinstance(item, Callback):
            raise TypeError(f"callbacks must hold onecycle.Callback objects, got {item!r}")
    return result


def dispatch(callbacks: Iterable[Callback]) -> Hooks:
    """Return for each event the bound hooks that are really overridden, in order."""
    callbacks = list(callbacks)
    return {
        event: tuple(getattr(cb, event) for cb in callbacks if _overrides(cb, event))
        for event in EVENTS
    }


def fire(hooks: tuple[Hook, ...], learn: Trainer) -> None:
    """Call every hook; raise the widest signal at the end, any other error at once with a note."""
    signal: Cancel | None = None
    for hook in hooks:
        try:
            hook(learn)
        except Cancel as raised:
            signal = raised if signal is None or raised.width > signal.width else signal
        except Exception as error:
            owner = type(getattr(hook, "__self__", hook)).__name__
            note(error, f"raised by the callback {owner} in {getattr(hook, '__name__', 'a hook')}")
            raise
    if signal is not None:
        raise signal


def fire_all(hooks: tuple[Hook, ...], learn: Trainer) -> None:
    """Call every hook even when some fail, then raise the first error."""
    failure: BaseException | None = None
    for hook in hooks:
        try:
            fire((hook,), learn)
        except Cancel:
            continue
        except BaseException as error:  # noqa: BLE001 - raised below, once all callbacks have ended
            failure = failure or error
    if failure is not None:
        raise failure


def _made(item: Any) -> Any:
    """Return an instance for a callback class, anything else as it is."""
    if not (isinstance(item, type) and issubclass(item, Callback)):
        return item
    try:
        return item()
    except TypeError as error:
        raise TypeError(f"callbacks: give an instance, not a class: {error}") from error


def _takes_learn(hook: Any) -> bool:
    """Tell whether a plain function can be called with the learner alone, as nothing else is."""
    if not inspect.isfunction(hook):
        return True
    parameters = inspect.signature(hook).parameters.values()
    return len(parameters) == 2 or any(p.kind is p.VAR_POSITIONAL for p in parameters)


def _overrides(callback: Callback, event: str) -> bool:
    hook = getattr(callback, event)
    return getattr(hook, "__func__", hook) is not getattr(Callback, event)
