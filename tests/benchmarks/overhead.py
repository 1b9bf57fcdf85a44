"""What a framework adds to a training step: microseconds for a step, in turns.

    python tests/benchmarks/overhead.py
    python tests/benchmarks/overhead.py --progress      # with bars, on a pseudo terminal
    python tests/benchmarks/overhead.py --validation    # and a validation after each of 15 epochs
    python tests/benchmarks/overhead.py --batch 1,8,64,512,4096
    python tests/benchmarks/overhead.py --resnet18      # the share of a realistic step

A multilayer perceptron 10-16-2 on batches of 8 made beforehand, AdamW and 1cycle, the loss recorded
at every step, nothing on disk; `contenders.py` and `peers.py` have the loops. The time runs from
batch 50 of the first epoch to the return with all losses as numbers, so that what is done once
counts little.
With bars, the terminal's other end is emptied by another process; the plain loop's tqdm tells no
loss, which is cheapest. With a validation it has as many batches as the epoch, for the loss and the
accuracy, and is part of the time.
"""

import argparse
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from statistics import median

from contenders import BY_HAND, Job, image_batches, resnet18, tiny_batches, us_per_step
from harness import Runs, aligned, chosen, machine, measured, parser, ratios, show, table
from peers import NEEDS, PEERS

ALL = BY_HAND | PEERS
FEW = ("plain", "lean", "onecycle")
EPOCHS = 15  # with a validation
NO_BAR = ("Lightning (stripped)",)


@contextmanager
def terminal() -> Iterator[None]:
    """Send stdout and stderr to a pseudo terminal of 100 columns whose output is thrown away."""
    sys.stdout.flush()
    sys.stderr.flush()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    # Another process reads, for a thread of this one would take turns with the contender.
    code = (
        "import os, sys\n"
        "try:\n    while os.read(int(sys.argv[1]), 65536): pass\n"
        "except OSError: pass"  # the end of a terminal, on Linux
    )
    reader = subprocess.Popen([sys.executable, "-c", code, str(ours)], pass_fds=[ours])
    os.close(ours)
    kept = os.dup(1), os.dup(2)
    os.dup2(theirs, 1)
    os.dup2(theirs, 2)
    os.close(theirs)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, place in enumerate(kept, start=1):
            os.dup2(place, number)
            os.close(place)
        reader.wait()


@cache
def job(kind: str, steps: int, batch: int) -> Job:
    """The job of this name; it is made in the contender's process, once."""
    if kind == "resnet18":
        return Job(model=resnet18, batches=image_batches(steps), lr=1e-3)
    made = Job(batches=tiny_batches(steps, batch), progress="progress" in kind)
    if "validation" in kind:
        batches = tiny_batches(steps // EPOCHS, batch)
        made = replace(made, batches=batches, valid=batches, epochs=EPOCHS)
    return made


def once(name: str, kind: str, steps: int, batch: int) -> float:
    """Measure one contender once."""
    made = job(kind, steps, batch)
    skip = min(50, len(made.batches) // 4)
    with terminal() if made.progress else nullcontext():
        return us_per_step(ALL[name], made, skip)


def timed(
    names: list[str], args: argparse.Namespace, kind: str = "", steps: int = 0, batch: int = 8
) -> Runs:
    """Measure the contenders on a job."""
    given = (kind, steps or args.steps, batch)
    contenders = {name: partial(once, name, *given) for name in names}
    return measured(contenders, args.rounds, args.threads)


def over_batch_sizes(names: list[str], args: argparse.Namespace) -> None:
    """One row for each batch size."""
    sizes = [int(size) for size in args.batch.split(",")]
    others = [name for name in names if name != "plain"]
    rows = [
        ["batch", *(f"{name}, us" for name in names)]
        + [f"{name} / plain" for name in others if "plain" in names]
    ]
    for size in sizes:
        # As many samples for the larger ones, or it would take long.
        steps = args.steps if size <= 64 else max(200, args.steps * 64 // size)
        runs = timed(names, args, steps=steps, batch=size)
        rows.append([str(size), *(f"{median(runs[name]):,.1f}" for name in names)])
        if "plain" in names:
            rows[-1] += [f"{median(ratios(runs, name, 'plain')):.3f}" for name in others]
    show("us per step, medians, by batch size", aligned(rows))


def on_resnet18(names: list[str], args: argparse.Namespace) -> None:
    """A step of resnet18, and what each contender adds to the lean loop's and the plain loop's."""
    steps = min(args.steps, 24)
    runs = timed(names, args, "resnet18", steps)
    title = f"us per step of resnet18, batch 32 of 3 x 32 x 32, {steps} steps a run"
    show(title, table(runs, "us", digits=0))
    rows = [["share of the step that is added", "to lean, %", "min", "max"]]
    rows[0] += ["to plain, %", "min", "max"]
    for name in names:
        row = [name]
        for base in ("lean", "plain"):
            added = [100 * (r - 1) for r in ratios(runs, name, base)]
            row += [f"{value:+.2f}" for value in (median(added), min(added), max(added))]
        rows.append(row)
    show("within each round", aligned(rows))


def main() -> None:
    """Measure what the options ask for."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=1500, help="of a run")
    options.add_argument("--progress", action="store_true", help="with bars")
    options.add_argument("--validation", action="store_true", help="after each of 15 epochs")
    options.add_argument("--batch", default="", metavar="SIZE,...", help="a table by batch size")
    options.add_argument("--resnet18", action="store_true", help="a realistic step")
    args = options.parse_args()
    few = bool(args.batch or args.resnet18)
    names = chosen(FEW if few and not args.only else ALL, args.only, NEEDS)
    print(machine(args))
    if args.batch:
        over_batch_sizes(names, args)
    if args.resnet18:
        on_resnet18(names, args)
    if few:
        return
    kind, title = "", f"us per step, {args.steps} steps a run"
    if args.progress:
        kind, title = "progress", f"{title}, with a bar"
        names = [name for name in names if name not in NO_BAR]
    if args.validation:
        kind, title = f"{kind} validation", f"{title}, with {EPOCHS} validations"
    show(title, table(timed(names, args, kind), "us"))


if __name__ == "__main__":
    main()
