"""Reading the training data of a run: epoch by epoch, and on from the place where a run stopped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

from torch.utils.data import DataLoader

from onecycle import generators
from onecycle.data.in_memory import InMemoryLoader
from onecycle.data.sharding import fills_in

END = object()


class Trained(Protocol):
    """What has a loader of training data."""

    train: Iterable[Any]


class Reader:
    """Gives the batches of every epoch and knows its place in the data.

    Args:
        data: its `train` is the loader, at every epoch the one that is there then.
        steps: batches in an epoch, which goes on where the last one stopped; None is the loader's
            whole length, from its beginning.
        first: number of the first pass over the loader where `steps` is given.
    """

    def __init__(self, data: Trained, steps: int | None = None, first: int = 0) -> None:
        self._data = data
        self._steps = steps
        self._first = first
        self._pass: Pass | None = None
        self._resumed = False
        self._broken = False

    def __call__(self, epoch: int, done: int = 0) -> Iterator[Any]:
        """Return the batches of an epoch after the first `done`, which a resumed run has had."""
        if self._broken:
            self._pass, self._broken = None, False
        if self._steps is not None:
            return self._stream(self._steps - done)
        if not self._resumed or self._pass is None:
            self._pass = Pass(self._data.train, epoch)
        self._resumed = False
        return self._pass

    @property
    def fills_in(self) -> bool:
        """Whether the batch that was read last does not count, see `onecycle.data.sharding`."""
        if self._pass is None:
            return False
        return fills_in(self._data.train, self._pass.taken - 1)

    def _stream(self, steps: int) -> Iterator[Any]:
        for _ in range(steps):
            try:
                batch = self._next()
            except Exception:
                self._broken = True
                raise
            if batch is END:
                return
            yield batch

    def _next(self) -> Any:
        """Return the next batch, of another pass if need be; END if the data is empty."""
        if self._pass is None:
            self._pass = Pass(self._data.train, self._first)
        batch = next(self._pass, END)
        if batch is END and self._pass.taken:
            self._pass = Pass(self._data.train, self._pass.number + 1)
            batch = next(self._pass, END)
        if batch is END:
            self._pass = None
        return batch

    def end(self) -> None:
        """The run is over: let go of a pass that no other run goes on with, and of its workers."""
        if self._steps is None:
            self._pass = None

    def state_dict(self, *, epoch_over: bool = False) -> dict[str, Any]:
        """Return the place: which pass over the data, and how many batches were taken of it.

        Empty where the next epoch begins with a pass of its own.
        """
        if self._pass is None or (epoch_over and self._steps is None):
            return {}
        return self._pass.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place, without training on what lies before it.

        Generators are left as they were when that batch had been read; a caller who wants others
        sets them afterwards.
        """
        self._pass = Pass.at(self._data.train, state) if state else None
        self._resumed = bool(state)


class Pass:
    """One pass over a loader, from its beginning, which counts the batches that it has given."""

    def __init__(self, loader: Iterable[Any], number: int) -> None:
        self.number = number
        self.taken = 0
        self._ended = False
        self._loader = loader
        replayed = positioned_by(loader) == "replay"
        self._start = generators.states(generators.found(loader)) if replayed else None
        set_epoch(loader, number)
        self._batches = iter(loader)

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch."""
        try:
            batch = next(self._batches)
        except StopIteration:
            self._ended = True
            raise
        self.taken += 1
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return how to come here again."""
        state = {"number": self.number, "taken": self.taken, "start": self._start}
        if self._ended:
            state["ended"] = True
        elif self.taken and positioned_by(self._loader) == "state":
            state["loader"] = self._loader.state_dict()  # type: ignore[attr-defined]
        return state

    @classmethod
    def at(cls, loader: Any, state: dict[str, Any]) -> Pass:
        """Return the pass of a state, with as many batches taken.

        Raises:
            ValueError: the loader ends before that.
        """
        taken = state["taken"]
        if "loader" in state:
            loader.load_state_dict(state["loader"])
        if state["start"] is not None:
            generators.set_states(generators.found(loader), state["start"])
        self = cls(loader, state["number"])
        if "ended" in state:
            self._batches = iter(())
        elif isinstance(loader, InMemoryLoader):
            self._batches = loader.batches(first=taken)
        elif positioned_by(loader) == "replay":
            found = sum(1 for _ in islice(self._batches, taken))
            if found < taken:
                raise ValueError(
                    f"data: train ends after {found} batches, the saved run had {taken}"
                )
        self.taken = taken
        return self


def positioned_by(loader: Any) -> str | None:
    """Return how `loader` is brought to a place in it.

    "seek" begins there; "state" takes a state of its own, as torchdata's StatefulDataLoader does;
    "replay" reads again what lies before, which needs the generators as they were; None: it cannot
    be, because a plain iterable may give other batches when it is iterated again.
    """
    if isinstance(loader, InMemoryLoader):
        return "seek"
    if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict"):
        return "state"
    if isinstance(loader, DataLoader):
        return "replay"
    return "replay" if hasattr(loader, "__getitem__") and hasattr(loader, "__len__") else None


def n_samples(loader: Any) -> int | None:
    """Return the number of samples in an epoch, where it can be known."""
    if isinstance(loader, InMemoryLoader):
        return loader.n
    try:
        return len(loader.dataset)
    except (AttributeError, TypeError):
        return None


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the loader, its samplers and its data set the epoch, where they want to know it."""
    for part in generators.parts(loader):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)
