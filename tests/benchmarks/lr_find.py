"""What `lr_find` costs: its time against the same training steps, its memory, its snapshot.

    python tests/benchmarks/lr_find.py [--steps 100]

1. A range test of resnet18 on random images, 3 x 32 x 32 in batches of 32, without refinement and
   without an early end, against as many steps of `fit`; and fastai's against its own.
2. How much the largest resident size of a process grows by the search, after some training.
3. A snapshot and its restore, which a sweep takes one of, against copying the same tensors once
   there and once back.
"""

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache, partial
from statistics import median
from typing import Any

import torch
from contenders import image_batches, resnet18
from harness import aligned, chosen, in_fresh_process, machine, measured, parser, peak_mb, show
from harness import table as table_of
from torch import Tensor, nn

from onecycle import DataLoaders, Learner, snapshot

RANGE = {"start_lr": 1e-7, "end_lr": 1e-1}  # where nothing diverges, so that no step is saved
WIDTHS = ((64, 8), (512, 8), (1024, 16), (2048, 8))


# ---- 1. time -----------------------------------------------------------------------------------


@cache
def learner(steps: int) -> Learner:
    """A learner of resnet18 whose optimizer has a state."""
    learn = Learner((image_batches(steps), None), resnet18(), device="cpu")
    with learn.no_logging():
        learn.fit(1, 1e-4)
    return learn


def fit(steps: int) -> float:
    """The training steps, recorded."""
    learn = learner(steps)
    start = time.perf_counter()
    with learn.no_logging():
        learn.fit(1, 1e-4)
    return time.perf_counter() - start


def find(steps: int) -> float:
    """As many in a range test, with the suggestion at its end."""
    learn = learner(steps)
    start = time.perf_counter()
    with learn.no_logging():
        found = learn.lr_find(**RANGE, num_it=steps, stop_div=False, refine=False)
    seconds = time.perf_counter() - start
    if len(found.lrs) != steps:
        raise RuntimeError(f"the sweep took {len(found.lrs)} of {steps} steps")
    return seconds


@cache
def fastai_learner(steps: int) -> Any:
    """fastai's learner of the same, with an optimizer that has a state."""
    from fastai.callback import progress, schedule  # noqa: F401 - they add to the Learner
    from fastai.data.core import DataLoaders as Fastai
    from fastai.learner import Learner as FastaiLearner
    from fastai.torch_core import default_device

    default_device(False)
    learn = FastaiLearner(Fastai(image_batches(steps), []), resnet18(), nn.CrossEntropyLoss())
    with ExitStack() as stack:
        quiet(learn, stack)
        learn.fit(1, 1e-4)
    return learn


def quiet(learn: Any, stack: ExitStack) -> None:
    """No bar and no table of fastai's."""
    stack.enter_context(learn.no_bar())
    stack.enter_context(learn.no_logging())


def fastai_fit(steps: int) -> float:
    """fastai's training steps."""
    learn = fastai_learner(steps)
    start = time.perf_counter()
    with ExitStack() as stack:
        quiet(learn, stack)
        learn.fit(1, 1e-4)
    return time.perf_counter() - start


def fastai_find(steps: int) -> float:
    """fastai's range test, which writes the model to a temporary file and reads it again."""
    learn = fastai_learner(steps)
    start = time.perf_counter()
    with ExitStack() as stack:
        quiet(learn, stack)
        learn.lr_find(**RANGE, num_it=steps, stop_div=False, show_plot=False)
    return time.perf_counter() - start


# ---- 2. memory ---------------------------------------------------------------------------------


def growth(find: Callable[[int], float]) -> float:
    """Megabytes by which this process grows beyond what training took."""
    fit_first = 10
    {"find": fit, "fastai_find": fastai_fit}[find.__name__](fit_first)
    before = peak_mb()
    find(fit_first)
    return peak_mb() - before


def grown(name: str) -> float:
    """The same in a fresh process."""
    return float(in_fresh_process(__file__, "--child", name))


def state_mb(learn: Learner) -> float:
    """Megabytes of parameters and optimizer state."""
    return sum(t.numel() * t.element_size() for t in tensors(learn)) / 1e6


# ---- 3. the snapshot ---------------------------------------------------------------------------


def network(width: int, depth: int) -> Learner:
    """A network of depth x width^2 parameters whose optimizer has a state."""
    net = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
    data = DataLoaders.from_tensors(torch.randn(4, width), torch.randn(4, width), batch_size=4)
    learn = Learner(data, net)
    with learn.no_logging():
        learn.fit(1, 1e-4)
    return learn


def tensors(learn: Learner) -> list[Tensor]:
    """All that must be copied."""
    states = (v for group in learn.opt.state.values() for v in group.values())
    return [*learn.model.parameters(), *(v for v in states if isinstance(v, Tensor))]


def copied(learn: Learner) -> None:
    """Copy every tensor, and copy it back."""
    with torch.no_grad():
        pairs = [(tensor, tensor.detach().clone()) for tensor in tensors(learn)]
        for tensor, value in pairs:
            tensor.copy_(value)


def preserved(learn: Learner) -> None:
    """What lr_find does around a sweep."""
    train = learn.data.train
    with (
        snapshot.surroundings_preserved([learn.model], train),
        snapshot.training_preserved([learn.model], learn.opt, learn.training_step),
    ):
        pass


def seconds(work: Callable[[Learner], None], learn: Learner) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work(learn)
    return time.perf_counter() - start


def snapshots(args: argparse.Namespace) -> None:
    """Measure in turns and print medians."""
    rows = [["parameters", "copied, ms", "preserved, ms", "ratio"]]
    for width, depth in WIDTHS:
        learn = network(width, depth)
        pair = {work.__name__: partial(seconds, work, learn) for work in (copied, preserved)}
        runs = measured(pair, args.rounds, args.threads, apart=False)
        pairs = list(zip(*runs.values(), strict=True))
        copying, preserving = (1e3 * median(column) for column in runs.values())
        ratio = median(b / a for a, b in pairs)
        n = sum(p.numel() for p in learn.model.parameters())
        rows.append([f"{n:,}", f"{copying:.2f}", f"{preserving:.2f}", f"{ratio:.2f}"])
    show("a snapshot and its restore, medians", aligned(rows))


NEEDS = {"fastai": "fastai"}
CONTENDERS = {"onecycle": (fit, find), "fastai": (fastai_fit, fastai_find)}


def main() -> None:
    """Print the three tables."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=100, help="of the range test")
    options.add_argument("--child", help=argparse.SUPPRESS)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.child:
        print(growth(CONTENDERS[args.child][1]))
        return
    names = chosen(CONTENDERS, args.only, NEEDS)
    print(machine(args))
    for name in names:
        pair = [partial(work, args.steps) for work in CONTENDERS[name]]
        base = f"{name}: fit"
        contenders = dict(zip((base, f"{name}: lr_find"), pair, strict=True))
        runs = measured(contenders, args.rounds, args.threads)
        show(f"seconds for {args.steps} steps of resnet18", table_of(runs, "s", base, digits=2))
    contenders = {name: partial(grown, name) for name in names}
    runs = measured(contenders, args.rounds, args.threads, warmup=0, apart=False)
    text = f"the parameters and the optimizer's state have {state_mb(learner(1)):.0f} MB"
    show(f"peak resident size, added by lr_find; {text}", table_of(runs, "MB"))
    snapshots(args)


if __name__ == "__main__":
    main()
