"""The processes that train one model together: where they meet, and what becomes of a failure.

All of them run the same program. Whatever could lead one of them elsewhere, such as a signal of a
callback, Ctrl-C, a loss that is not finite or an error, is exchanged where they meet, so that all
do the same or all end. One who is gone is missed at the next meeting.
"""

from __future__ import annotations

import atexit
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from itertools import zip_longest
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from onecycle.batch import to_device
from onecycle.signals import SIGNALS, Cancel

T = TypeVar("T")

VALUES = 4  # numbers that each process brings to a meeting
FAILED = -1.0
GRACE = 3.0  # seconds to wait for a sign of the others, once one is missing
ASK = 0.5  # seconds between two looks whether another process misses one
LINGER = 0.3  # seconds for a process that has failed to say so before the others end
LAST = 5.0  # seconds to wait for the others when this process has failed
MISSING = object()


class PeerError(RuntimeError):
    """Another process has failed or is gone, so this one cannot go on."""


class Meeting(NamedTuple):
    """What the processes brought: a signal of the system, and a row of numbers each."""

    stop: int
    values: Tensor


class World:
    """All processes that train together, of which this one is number `rank` of `size`.

    A process by itself is a world of size 1, which exchanges nothing.

    >>> world = World()
    >>> world.rank, world.size, world.first(lambda: "read once")
    (0, 1, 'read once')
    """

    def __init__(self) -> None:
        self.rank, self.size = rank(), size()
        self.broken = False  # it has failed, so each process goes on by itself to its end
        self.agreed: Cancel | None = None  # the last signal, which all have raised

    @property
    def alone(self) -> bool:
        """Whether nothing has to be exchanged."""
        return self.size == 1 or self.broken

    def meet(
        self,
        place: str,
        signal: Cancel | None = None,
        stop: int = 0,
        values: Sequence[float] = (),
    ) -> Meeting:
        """Wait for all processes at `place`, and return what they brought.

        Args:
            place: the same for all, or one of them has taken another way; who has a signal may be
                elsewhere, since that is to bring all to one place again.
            signal: what a callback has raised here, if it did.
            stop: the number of a signal of the system that has come here, 0 for none.
            values: at most four numbers.

        Raises:
            Cancel: the widest signal of all.
            PeerError: another process has failed, is elsewhere or gone.
        """
        if self.alone and signal is not None:
            raise signal
        width = 0 if signal is None else signal.width
        row = [width, stop, *values, *[0.0] * (VALUES - len(values))]
        if self.alone:
            return Meeting(stop, torch.tensor([row[2:]], dtype=torch.float64))
        rows = self._exchange([float(zlib.crc32(place.encode())), *row])
        failed = (rows[:, 1] == FAILED).nonzero().flatten().tolist()
        if failed:
            raise PeerError(self._said(failed))
        widest = int(rows[:, 1].max())
        if widest:
            self.agreed = SIGNALS[widest]() if signal is None or widest > width else signal
            raise self.agreed
        elsewhere = (rows[:, 0] != rows[self.rank, 0]).nonzero().flatten().tolist()
        if elsewhere:
            names = ", ".join(map(str, elsewhere))
            raise PeerError(
                f"rank {names} is elsewhere in the program than rank {self.rank}, which is at "
                f"{place!r}: all processes must make the same calls, with the same callbacks"
            )
        return Meeting(int(rows[:, 2].max()), rows[:, 3:])

    def number(self, value: float) -> float:
        """Return the `value` of the first process, such as the time on its clock."""
        return value if self.alone else float(self.meet("number", values=[value]).values[0, 0])

    def first(self, make: Callable[[], T]) -> T:
        """Return what `make` returns, or raise what it raises, in the first process alone."""
        if self.alone:
            return make()
        made: list[Any] = [None, None]
        if self.rank == 0:
            try:
                made[0] = make()
            except Exception as error:  # noqa: BLE001 - raised below, in all processes
                made[1] = error
        self.meet("object")
        dist.broadcast_object_list(made, src=0, group=_group())
        if made[1] is not None:
            raise made[1]
        value: T = made[0]
        return value

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of their ranks."""
        if self.alone:
            return [value]
        self.meet("objects")
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, to_device(value, torch.device("cpu")), group=_group())
        return values

    def merged(self, parts: Sequence[T]) -> list[T]:
        """Return the parts of all processes in the order of the data, of each batch one or none.

        >>> World().merged([1, 2])
        [1, 2]
        """
        columns = self.gather(list(parts))
        rows = zip_longest(*columns, fillvalue=MISSING)
        return [part for row in rows for part in row if part is not MISSING]  # type: ignore[misc]

    def failed(self, error: BaseException) -> BaseException:
        """Tell the others of an error that ends the run here; return the one to raise.

        That is `error`, or a `PeerError` which names the process that has ended the run.
        """
        if self.alone:
            return error
        if isinstance(error, PeerError):
            self.broken = True
            time.sleep(LINGER)
            return error
        if _is_of_connection(error):
            self.broken = True
            return PeerError(self._missed())
        with suppress(Exception):
            lines = f"{type(error).__name__}: {error}".splitlines()
            text = lines[-1] if "DataLoader worker" in lines[0] else lines[0]
            _store().set(f"failed/{self.rank}", text)
            self._exchange([0.0, FAILED, *[0.0] * (VALUES + 1)], timeout=LAST)
        self.broken = True
        return error

    def begin(self) -> None:
        """A run begins, for which nothing has failed so far.

        Raises:
            RuntimeError: there are several processes, and this one did not know of them.
        """
        if self.size == 1 and _described() > 1:
            raise RuntimeError(
                "this Learner was made before the processes were there, so each would train by "
                "itself: make it in the function that launch runs, or after init_process_group"
            )
        self.broken, self.agreed = False, None

    def end(self) -> None:
        """A run is over in all processes; its last signal held the batch that it was raised in."""
        self.meet("end")
        self.agreed = None

    def forget(self) -> None:
        """All have begun anew, so what this process has said of an earlier failure is over."""
        if not self.alone:
            _store().delete_key(f"failed/{self.rank}")

    def _exchange(self, row: list[float], timeout: float | None = None) -> Tensor:
        mine = torch.tensor(row, dtype=torch.float64)
        rows = torch.empty(self.size * len(row), dtype=torch.float64)
        try:
            work: Any = dist.all_gather_into_tensor(rows, mine, group=_group(), async_op=True)
            until = None if timeout is None else time.monotonic() + timeout
            while not _arrived(work):
                if until is not None and time.monotonic() > until:
                    raise TimeoutError
                # Not all are connected to one who is gone: who is tells the others.
                if _store().check(["alarm"]):
                    raise RuntimeError("alarm")
        except RuntimeError as error:
            if timeout is not None:
                raise
            raise PeerError(self._missed()) from error
        return rows.view(self.size, len(row))

    def _said(self, failed: Sequence[int]) -> str:
        return "; ".join(f"rank {r} has failed: {_text(f'failed/{r}')}" for r in failed)

    def _missed(self) -> str:
        """Return in words who has failed or gives no sign of life any more."""
        others = [r for r in range(self.size) if r != self.rank]
        try:
            store = _store()
            store.set(f"alive/{self.rank}", "")
            store.set("alarm", "")
            failed = [r for r in others if store.check([f"failed/{r}"])]
            # Of two it is the other one; of more, those that are left have missed it as well.
            until = time.monotonic() + (GRACE if self.size > 2 else 0.0)
            silent = [r for r in others if r not in failed]
            while silent and time.monotonic() < until:
                silent = [r for r in silent if not store.check([f"alive/{r}"])]
                time.sleep(0.02)
        except (RuntimeError, dist.DistError):
            return "the process that all others are joined by, most likely rank 0, is gone"
        if failed:
            return self._said(failed)
        if silent:
            names = ", ".join(map(str, silent))
            return f"rank {names} is gone: killed, ended, or its machine is not there any more"
        return "the connection between the processes is broken"


def rank() -> int:
    """Return the number of this process, 0 where it is the only one.

    >>> rank()
    0
    """
    return dist.get_rank() if _is_initialized() else 0


def size() -> int:
    """Return the number of processes.

    >>> size()
    1
    """
    return dist.get_world_size() if _is_initialized() else 1


def join() -> World:
    """Return the world of this process; under torchrun it joins the others first.

    That is where the environment has RANK and WORLD_SIZE and nobody has joined yet.
    """
    if _described() > 1 and dist.is_available():
        if not dist.is_initialized():
            dist.init_process_group()
            atexit.register(leave)
        _group()  # all processes make it at the same place
    return World()


def leave() -> None:
    """End the connection to the other processes, before the threads that keep it are ended.

    >>> leave()
    """
    _made.cache_clear()
    if _is_initialized():
        dist.destroy_process_group()


def _described() -> int:
    """Return how many processes the environment says there are."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else 1


def own_device(device: torch.device | str | None) -> torch.device | str | None:
    """Return the GPU of this process for None or "cuda"; any other device is what it is.

    >>> own_device("cpu")
    'cpu'
    """
    if size() == 1 or str(device) not in ("None", "cuda") or not torch.cuda.is_available():
        return device
    # A process may see no other GPU than its own.
    number = int(os.environ.get("LOCAL_RANK", rank())) % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


@torch.no_grad()
def synchronize(module: nn.Module) -> None:
    """Give every process the parameters and buffers of the first one."""
    for tensor in (*module.parameters(), *module.buffers()):
        whole = tensor.detach().contiguous()  # of a part of a tensor, torch would send what is near
        dist.broadcast(whole, src=0)
        tensor.copy_(whole)


@torch.no_grad()
def synchronize_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the first one, such as the statistics of batch norm."""
    kinds: dict[Any, list[Tensor]] = {}
    for buffer in module.buffers():
        kinds.setdefault((buffer.dtype, buffer.device), []).append(buffer)
    for buffers in kinds.values():
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        dist.broadcast(flat, src=0)
        parts = torch.split(flat, [buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def require_alike(values: Tensor) -> None:
    """Refuse to go on where the data of some processes have ended, as the third value says.

    >>> require_alike(torch.zeros(2, 4))
    """
    ended = values[:, 2].tolist()
    if len(set(ended)) > 1:
        raise ValueError(
            f"data: rank {ended.index(1.0)} has fewer batches than rank {ended.index(0.0)}; all "
            "processes need equally many, or steps_per_epoch"
        )


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


@lru_cache(maxsize=1)
def _made(default: Any) -> Any:  # noqa: ARG001 - a new default group has a new one beside it
    return dist.new_group(backend="gloo")


def _group() -> Any:
    """Return the group for meetings: apart from that of gradients, and on the CPU in any case."""
    return _made(dist.group.WORLD)


def _store() -> Any:
    default = dist.distributed_c10d._get_default_store()  # noqa: SLF001 - there is no other way
    return dist.distributed_c10d.PrefixStore("onecycle", default)


def _text(key: str) -> str:
    try:
        store = _store()
        return str(store.get(key).decode()) if store.check([key]) else "it did not say of what"
    except (RuntimeError, dist.DistError):
        return "it did not say of what"


def _arrived(work: Any) -> bool:
    """Wait for a while, and tell whether an exchange is done."""
    try:
        work.wait(timedelta(seconds=ASK))
    except RuntimeError as error:
        if "timed out" not in str(error).lower():
            raise
        if not work.is_completed():
            return False
        work.wait()  # it was done in the meantime, or has failed
    return True


def _is_of_connection(error: BaseException) -> bool:
    """Tell whether an error is that of a collective, and so most likely the doing of another."""
    if isinstance(error, dist.DistError):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        word in told for word in ("gloo", "nccl", "connection closed by peer")
    )
