"""What `lr_find` costs beside its forward and backward passes: a snapshot and its restore.

    python tests/benchmarks/lr_find_cost.py

Compared with copying the same tensors once there and once back, in turns, by medians.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from onecycle import DataLoaders, Learner, snapshot

RUNS = 15


def learner(width: int, depth: int) -> Learner:
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


def main() -> None:
    """Measure in turns and print medians."""
    print("| parameters | copied, ms | preserved, ms | ratio |\n|---|---|---|---|")
    for width, depth in ((64, 8), (512, 8), (1024, 16), (2048, 8)):
        learn = learner(width, depth)
        pairs = [(seconds(copied, learn), seconds(preserved, learn)) for _ in range(RUNS)]
        copying, preserving = (
            1e3 * statistics.median(column) for column in zip(*pairs, strict=False)
        )
        ratio = statistics.median(b / a for a, b in pairs)
        n = sum(p.numel() for p in learn.model.parameters())
        print(f"| {n:,} | {copying:.2f} | {preserving:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
