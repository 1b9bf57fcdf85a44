"""What the speed benchmarks share: contenders in turns, medians with min and max, one table.

A contender is a function that measures once and returns a number. Every round runs each of them
once, in an order that is rotated from round to round, so that what slows the machine for a while
slows all of them; the ratio to the base is taken within each round, and its median is told.
"""

import argparse
import gc
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

PEERS = ("fastai", "lightning", "pytorch-ignite", "skorch", "accelerate", "torchvision")
Contender = Callable[[], float]
Runs = dict[str, list[float]]


def parser(doc: str | None, rounds: int = 9, threads: int = 1) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=int, default=rounds, help="how often each is measured")
    made.add_argument("--threads", type=int, default=threads, help="of torch, for each contender")
    made.add_argument("--only", default="", metavar="NAME,...", help="these contenders only")
    return made


def chosen(names: Iterable[str], only: str, needs: dict[str, str] | None = None) -> list[str]:
    """Return the names in `only`, or all, without those whose package is not installed.

    `needs` has the module that a contender imports.
    """
    names = list(names)
    wanted = [name.strip() for name in only.split(",") if name.strip()] or names
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise SystemExit(f"--only: there is no {unknown[0]!r}, but {', '.join(names)}")
    found = []
    for name in wanted:
        module = (needs or {}).get(name)
        if module is not None and find_spec(module) is None:
            print(f"{name} is left out: {module} is not installed", flush=True)
        else:
            found.append(name)
    return found


def measured(
    contenders: dict[str, Contender],
    rounds: int,
    threads: int,
    *,
    warmup: int = 1,
    apart: bool = True,
) -> Runs:
    """Return what each contender measured in each round, the first `warmup` rounds left out.

    Each has a process of its own, for what one imports may slow the others, and so is pickled.
    Not `apart`, for contenders that start processes themselves, they are called in this one.
    """
    names = list(contenders)
    runs: Runs = {name: [] for name in names}
    with ExitStack() as stack:
        if apart:
            contenders = {
                name: stack.enter_context(Worker(contender, threads))
                for name, contender in contenders.items()
            }
        for number in range(-warmup, rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                value = contenders[name]()
                if number >= 0:
                    runs[name].append(value)
    return runs


class Worker:
    """A process that waits, and measures one contender when it is called."""

    def __init__(self, contender: Contender, threads: int) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender, threads))

    def __enter__(self) -> "Worker":
        self._process.start()
        return self

    def __call__(self) -> float:
        self._pipe.send(True)
        answer = self._pipe.recv()
        if isinstance(answer, str):
            raise RuntimeError(f"a contender failed:\n{answer}")
        return answer

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it may have died
            self._pipe.send(False)
        self._process.join()


def _serve(pipe: Any, contender: Contender, threads: int) -> None:
    # Everything is measured on the CPU. Where torch is built for CUDA and there is none, Lightning
    # has it look for a driver in every optimizer step, 150 us, unless it is told not to look.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with suppress(EOFError, KeyboardInterrupt):
        while pipe.recv():
            gc.collect()
            torch.set_num_threads(threads)  # again, for some frameworks have their own idea of it
            try:
                pipe.send(contender())
            except Exception:  # noqa: BLE001 - it is told where it can be read
                pipe.send(traceback.format_exc())


def table(runs: Runs, unit: str, base: str = "plain", digits: int = 1) -> str:
    """Return a markdown table of medians, and of the ratio to `base` where that is there."""
    rows = [["", unit, "min", "max", *([f"ratio to {base}", "min", "max"] if base in runs else [])]]
    for name, values in runs.items():
        row = [name, *(f"{value:,.{digits}f}" for value in _spread(values))]
        if base in runs:
            row += [f"{ratio:.3f}" for ratio in _spread(ratios(runs, name, base))]
        rows.append(row)
    return aligned(rows)


def ratios(runs: Runs, name: str, base: str) -> list[float]:
    """Return the ratio of each round; nan where the base was not measured."""
    bases = runs.get(base, [math.nan] * len(runs[name]))
    return [value / other for value, other in zip(runs[name], bases, strict=True)]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the first of them the header, as markdown whose columns stand in line."""
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(args: argparse.Namespace) -> str:
    """Return a line that says where this was measured, and how."""
    versions = []
    for peer in PEERS:
        try:
            versions.append(f"{peer} {version(peer)}")
        except PackageNotFoundError:
            continue
    command = " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
    return (
        f"{_cores()} cores ({_cpu()}), python {platform.python_version()}, "
        f"torch {torch.__version__}, {', '.join(versions)}; `{command}`: {args.rounds} rounds, "
        f"{args.threads} thread{'s' * (args.threads > 1)}"
    )


def show(title: str, text: str) -> None:
    """Print a table under its title, at once."""
    print(f"\n{title}\n\n{text}", flush=True)


def in_fresh_process(script: str, *arguments: str) -> str:
    """Run a script in a new interpreter and return the last line that it prints.

    Raises:
        RuntimeError: it failed, with what it said.
    """
    command = [sys.executable, script, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr}")
    return run.stdout.splitlines()[-1]


def peak_mb() -> float:
    """Return the largest resident size of this process so far, in units of 10^6 bytes."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> str:
    """Return the processor's name, which `platform` does not know on Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
