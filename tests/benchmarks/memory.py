"""The memory that a fit takes: largest resident size of a fresh process, in turns.

    python tests/benchmarks/memory.py

(a) the multilayer perceptron of `overhead.py`, 20,000 steps: what is kept for every step shows;
(b) resnet18 on batches of 32 random images, 3 x 32 x 32, 50 steps: the model and its optimizer.
The first table is the whole process, packages included, the second what the fit added to its peak.
"""

import argparse
import json
from functools import partial

import torch
from contenders import BY_HAND, Job, image_batches, resnet18, tiny_batches
from harness import Runs, chosen, in_fresh_process, machine, measured, parser, peak_mb, show, table
from peers import NEEDS, PEERS

NAMES = ("plain", "onecycle", "fastai", "Lightning")
TITLES = {"mlp": "MLP 10-16-2", "resnet18": "resnet18"}


def job(kind: str, steps: int) -> Job:
    """What is trained."""
    if kind == "resnet18":
        return Job(model=resnet18, batches=image_batches(steps), lr=1e-3)
    return Job(batches=tiny_batches(steps))


def child(kind: str, name: str, steps: int) -> list[float]:
    """Return the peak in megabytes, and by how much the fit raised it."""
    work = (BY_HAND | PEERS)[name]
    # A few steps of another model before, so that what packages load at first use is not the fit's.
    work(Job(batches=tiny_batches(10)))
    given = job(kind, steps)
    before = peak_mb()
    work(given)
    return [peak_mb(), peak_mb() - before]


def measure(pairs: list[list[float]], kind: str, name: str, steps: int, threads: int) -> float:
    """Return the peak of a fresh process, and keep the growth in `pairs`."""
    options = ["--child", kind, name, str(steps), "--threads", str(threads)]
    pairs.append(json.loads(in_fresh_process(__file__, *options)))
    return pairs[-1][0]


def main() -> None:
    """Measure both jobs."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--mlp-steps", type=int, default=20_000)
    options.add_argument("--resnet18-steps", type=int, default=50)
    options.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.child:
        torch.set_num_threads(args.threads)
        kind, name, steps = args.child
        print(json.dumps(child(kind, name, int(steps))))
        return
    names = chosen(NAMES, args.only, NEEDS)
    print(machine(args))
    for kind, steps in (("mlp", args.mlp_steps), ("resnet18", args.resnet18_steps)):
        pairs: dict[str, list[list[float]]] = {name: [] for name in names}
        contenders = {
            name: partial(measure, pairs[name], kind, name, steps, args.threads) for name in names
        }
        runs = measured(contenders, args.rounds, args.threads, warmup=0, apart=False)
        added: Runs = {name: [pair[1] for pair in pairs[name]] for name in names}
        title = f"{TITLES[kind]}, {steps:,} steps"
        show(f"{title}: peak resident size", table(runs, "MB"))
        show(f"{title}: added by the fit", table(added, "MB", base=""))


if __name__ == "__main__":
    main()
