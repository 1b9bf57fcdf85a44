"""Starting several processes from a notebook or a script, by torch's own elastic launcher."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import __main__
from onecycle import checks
from onecycle.distributed import PeerError, leave


def launch(fn: Callable[..., Any], nproc: int, *args: Any, start_method: str | None = None) -> Any:
    """Run `fn(*args)` in `nproc` processes of this machine, and return what the first returns.

    A `Learner` that is made in there trains with those of the other processes, as under torchrun.
    Each has its GPU where there are any, and one thread of the CPU.

    Args:
        fn: makes the Learner and trains; a function of a notebook will do where processes are
            forked. What it returns must be picklable.
        nproc: processes.
        args: of `fn`.
        start_method: "fork", "forkserver" or "spawn", as in multiprocessing; None forks where
            that is possible and CUDA was not used yet, since a forked process cannot use it then.

    Raises:
        ValueError, TypeError: an argument out of its range; a function of a notebook, which cannot
            be spawned.
        RuntimeError: a process has failed, and the others were ended; it has the rank, the error
            and where that was raised.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if not callable(fn):
        raise TypeError(f"fn must be a function, got {fn!r}")
    checks.integer("nproc", nproc)
    methods = multiprocessing.get_all_start_methods()
    forks = "fork" in methods and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    method = checks.choice("start_method", start_method or ("fork" if forks else "spawn"), methods)
    notebook = fn.__module__ == "__main__" and not hasattr(__main__, "__file__")
    if method != "fork" and notebook:
        raise ValueError(
            f"fn: {fn.__qualname__} is defined in a notebook, which a process that is not forked "
            "cannot import: put it into a module, or call launch before anything uses CUDA"
        )
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method=method,
        monitor_interval=0.05,
    )
    started = multiprocessing.get_context(method).Barrier(nproc)
    try:
        with _handlers_kept():
            return elastic_launch(config, _run)(started, fn, args)[0]
    except ChildFailedError as error:
        raise RuntimeError(_told(error.failures)) from None


def _told(failures: dict[int, Any]) -> str:
    """Return what the process says that has failed by itself, or was killed."""
    messages = {rank: failure.message for rank, failure in failures.items()}
    errors = {
        rank: message.get("message", "") if isinstance(message, dict) else message
        for rank, message in messages.items()
    }
    own = [rank for rank, text in errors.items() if not text.startswith(PeerError.__name__)]
    rank = min(own or failures)
    message = messages[rank]
    info = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    where = info.get("py_callstack", "")
    return f"rank {rank} has failed: {errors[rank]}\n{where}".rstrip()


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put the handlers of signals back, which torch's launcher leaves replaced by its own.

    Ctrl-C is what it always is.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


def _run(started: Any, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    # A process that is forked while an earlier one connects may wait forever for a lock of the
    # resolver, which a thread of torch's store holds in the parent then.
    started.wait()
    # Forked processes have those of torch's launcher, which are for the process that has them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    try:
        return fn(*args)
    finally:
        leave()
