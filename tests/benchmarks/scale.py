"""What several processes cost: a step of ours against a plain DDP loop, and the meeting in it.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py          # about two minutes

Both train the same MLP on the same in-memory data, one process for each CPU core at most, in turn
within one run; a round is an epoch of each. The plain loop is what torch's tutorial has:
DistributedDataParallel, DistributedSampler and no metric, no recorder, no schedule. Printed are
medians over rounds, and the range.
"""

import platform
import statistics
import time

import harness
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from onecycle import DataLoaders, Learner, launch

ROWS, BATCH = 16_384, 64


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


def rounds(n: int, width: int) -> list[tuple[float, float, float]]:
    """Return seconds per step of ours, of the plain loop, and of a meeting, for each round."""
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, 64), torch.randint(10, (ROWS,))
    learn = Learner(DataLoaders.from_tensors(x, y, batch_size=BATCH), network(width))
    size = learn.world.size
    sampler: DistributedSampler | None = None
    plain: nn.Module = network(width)
    if size > 1:
        sampler = DistributedSampler(TensorDataset(x, y), seed=0)
        plain = DistributedDataParallel(plain)
    loader = DataLoader(TensorDataset(x, y), BATCH, sampler=sampler, shuffle=sampler is None)
    opt = torch.optim.AdamW(plain.parameters(), 1e-3)
    found = []
    with learn.no_logging():
        for k in range(n + 1):
            start = time.perf_counter()
            learn.fit_one_cycle(1, 1e-3, keep_trunk=False)
            ours = (time.perf_counter() - start) / learn.total_steps
            if sampler is not None:
                sampler.set_epoch(k)
            start = time.perf_counter()
            for bx, by in loader:
                opt.zero_grad()
                functional.cross_entropy(plain(bx), by).backward()
                opt.step()
            by_hand = (time.perf_counter() - start) / len(loader)
            start = time.perf_counter()
            for _ in range(100):
                learn.world.meet("here")
            found.append((ours, by_hand, (time.perf_counter() - start) / 100))
    return found[1:]  # the first round warms up


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}")
    print("processes  width   ours us  plain us   ratio (range)         meeting us")
    for nproc in options.processes:
        for width in (64, 1024):
            found = launch(rounds, nproc, options.rounds, width)
            columns = zip(*found, strict=True)
            ours, plain, meeting = (statistics.median(column) * 1e6 for column in columns)
            ratios = [a / b for a, b, _ in found]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"{nproc:9}  {width:5}  {ours:8.0f}  {plain:8.0f}   {spread:20}  {meeting:9.0f}")


if __name__ == "__main__":
    main()
