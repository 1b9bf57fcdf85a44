"""Several processes that are expected to fail: what each of them says in the end, and when."""

import multiprocessing
import os
import pickle
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the first optimizer would, in each process anew
from torch import distributed


@dataclass
class End:
    """How one process ended: what it returned or raised, its exit code, seconds after the start."""

    value: Any = None
    error: BaseException | None = None
    code: int | None = None
    seconds: float = 0.0
    hung: bool = False


def run(fn, nproc, *args, timeout=60.0):
    """Run `fn(rank, *args)` in `nproc` forked processes, joined by a file; return their ends."""
    # A server here would have threads, which a fork may catch in the middle of something.
    path = Path(tempfile.mkdtemp()) / "store"
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(nproc)]
    processes = [
        context.Process(target=_child, args=(pipe[1], fn, rank, nproc, path, args))
        for rank, pipe in enumerate(pipes)
    ]
    began = time.monotonic()
    for process in processes:
        process.start()
    for _, theirs in pipes:
        theirs.close()
    ends = []
    for process, (ours, _) in zip(processes, pipes, strict=True):
        end = End()
        try:
            if ours.poll(max(0.0, began + timeout - time.monotonic())):
                end.value, end.error, end.seconds = pickle.loads(ours.recv_bytes())
            else:
                end.hung = True
        except EOFError:  # it was killed
            end.seconds = time.monotonic() - began
        process.join(0.0 if end.hung else 5.0)
        if process.is_alive():
            end.hung = True
            process.kill()
            process.join()
        end.code = process.exitcode
        ends.append(end)
    return ends


def _child(pipe, fn, rank, nproc, path, args):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(nproc))
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(path), nproc), rank=rank, world_size=nproc
    )
    began = time.monotonic()
    value = error = None
    try:
        value = fn(rank, *args)
    except BaseException as raised:  # noqa: BLE001 - it is what is looked at
        error = raised
    # By value: a tensor would be passed as a file of a process that is about to end.
    said = pickle.dumps((value, error, time.monotonic() - began))
    pipe.send_bytes(said)
    pipe.close()
    os._exit(0 if error is None else 1)
