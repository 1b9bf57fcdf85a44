"""Contenders: one job, trained by loops written by hand and by onecycle; `peers.py` has the others.

A contender is a function of a `Job` that trains it and returns the loss of every step. All of them
train the same model from the same weights on the same batches, by AdamW and the same 1cycle, which
is torch's `OneCycleLR` with the peak where ours is. One thing differs by default: onecycle and
fastai spare biases and norms from weight decay, the others do not; with `wd=0` they are the same.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from onecycle import Learner, accuracy
from onecycle.schedules import one_cycle, one_cycle_momentum, sample

Batches = Sequence[tuple[Tensor, Tensor]]


class Clocked:
    """Batches that note the time when number `skip` of the first epoch is asked for.

    So every framework is timed alike, without a hook in it, and what it does once is left out.
    """

    def __init__(self, batches: Batches, skip: int = 0) -> None:
        self.batches = batches
        self.skip = skip
        self.started = 0.0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.batches[: self.skip]
        self.started = self.started or time.perf_counter()
        yield from self.batches[self.skip :]


def tiny_mlp() -> nn.Module:
    """A network so small that a step is hardly more than what surrounds it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))


def tiny_batches(steps: int, batch: int = 8, kinds: int = 32) -> Batches:
    """`steps` batches for it, of which `kinds` differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(kinds, batch, 10, generator=generator)
    y = (x[..., 0] + x[..., 1] > 0).long()
    return [(x[i % kinds], y[i % kinds]) for i in range(steps)]


def resnet18() -> nn.Module:
    """torchvision's, for ten classes."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    return resnet18(num_classes=10)


def image_batches(steps: int, batch: int = 32, kinds: int = 4) -> Batches:
    """`steps` batches of random images, 3 x 32 x 32, of which `kinds` differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(kinds, batch, 3, 32, 32, generator=generator)
    y = torch.randint(10, (kinds, batch), generator=generator)
    return [(x[i % kinds], y[i % kinds]) for i in range(steps)]


@dataclass(frozen=True)
class Job:
    """What every contender does: train the model that `model()` returns, by one cycle."""

    model: Callable[[], nn.Module] = tiny_mlp
    batches: Any = field(default_factory=lambda: tiny_batches(1500))
    valid: Batches | None = None  # validated after every epoch: loss and accuracy
    epochs: int = 1
    lr: float = 1e-2
    wd: float = 0.01
    progress: bool = False

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * len(self.batches)

    def schedule(self, opt: torch.optim.Optimizer) -> OneCycleLR:
        """torch's 1cycle, to be stepped after every batch."""
        return OneCycleLR(opt, **self.cycle)

    @property
    def cycle(self) -> dict[str, Any]:
        """The arguments of torch's 1cycle, whose peak is a step before pct_start."""
        peak = (round(0.3 * self.steps) + 1) / self.steps
        return {"max_lr": self.lr, "total_steps": self.steps, "pct_start": peak}

    def values(self) -> Iterator[tuple[float, float]]:
        """Learning rate and momentum of every step, for those who write them by hand."""
        options: dict[str, Any] = {"warmup": "cos", "total_steps": self.steps}
        rates = sample(one_cycle(self.lr, **options), self.steps)
        return zip(rates, sample(one_cycle_momentum(**options), self.steps), strict=True)

    def epoch(self) -> Iterable[tuple[Tensor, Tensor]]:
        """The batches of one epoch, with a bar if one is wanted; it tells no loss."""
        return tqdm(self.batches) if self.progress else self.batches


def us_per_step(contender: Callable[[Job], list[float]], job: Job, skip: int = 50) -> float:
    """Return microseconds for a step, from the batch number `skip` to the return of the losses."""
    clocked = Clocked(job.batches, skip)
    losses = contender(replace(job, batches=clocked))
    seconds = time.perf_counter() - clocked.started
    if len(losses) != job.steps:
        raise RuntimeError(f"{len(losses)} losses of {job.steps} steps")
    return 1e6 * seconds / (job.steps - skip)


# ---- by hand -----------------------------------------------------------------------------------


def plain(job: Job, *, fused: bool | None = None) -> list[float]:
    """The loop that a user writes."""
    model, losses = job.model(), []
    opt = AdamW(model.parameters(), lr=job.lr, weight_decay=job.wd, fused=fused)
    schedule = job.schedule(opt)
    for _ in range(job.epochs):
        model.train()
        for x, y in job.epoch():
            opt.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            schedule.step()
            losses.append(loss.item())
        if job.valid is not None:
            validated(model, job.valid)
    return losses


def plain_fused(job: Job) -> list[float]:
    """The same with torch's fused AdamW."""
    return plain(job, fused=True)


def lean(job: Job) -> list[float]:
    """The best loop on torch's public API: fused, values written in place, losses read at last."""
    model, losses = job.model(), []
    opt = AdamW(model.parameters(), lr=job.lr, weight_decay=job.wd, fused=True)
    group, values = opt.param_groups[0], job.values()
    for _ in range(job.epochs):
        model.train()
        for (x, y), (lr, momentum) in zip(job.epoch(), values, strict=False):
            group["lr"], group["betas"] = lr, (momentum, 0.999)
            loss = cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.detach())
        if job.valid is not None:
            validated(model, job.valid, at_once=True)
    return torch.stack(losses).tolist()


def kernel(job: Job) -> list[float]:
    """The lean loop without an optimizer: the fused kernel on flat lists."""
    model, losses = job.model(), []
    parameters = list(model.parameters())
    averages = [torch.zeros_like(p) for p in parameters]
    squares = [torch.zeros_like(p) for p in parameters]
    done = [torch.zeros(()) for _ in parameters]
    values = job.values()
    for _ in range(job.epochs):
        model.train()
        for (x, y), (lr, momentum) in zip(job.epoch(), values, strict=False):
            loss = cross_entropy(model(x), y)
            loss.backward()
            gradients = [p.grad for p in parameters]
            with torch.no_grad():
                torch._foreach_add_(done, 1)
                torch._fused_adamw_(
                    parameters,
                    gradients,
                    averages,
                    squares,
                    [],
                    done,
                    lr=lr,
                    beta1=momentum,
                    beta2=0.999,
                    weight_decay=job.wd,
                    eps=1e-8,
                    amsgrad=False,
                    maximize=False,
                )
            for parameter in parameters:
                parameter.grad = None
            losses.append(loss.detach())
        if job.valid is not None:
            validated(model, job.valid, at_once=True)
    return torch.stack(losses).tolist()


def floor(job: Job) -> list[float]:
    """Forward and backward alone: nothing is learnt."""
    model, losses = job.model(), []
    parameters = list(model.parameters())
    for _ in range(job.epochs):
        model.train()
        for x, y in job.epoch():
            loss = cross_entropy(model(x), y)
            loss.backward()
            for parameter in parameters:
                parameter.grad = None
            losses.append(loss.detach())
        if job.valid is not None:
            validated(model, job.valid, at_once=True)
    return torch.stack(losses).tolist()


@torch.no_grad()
def validated(model: nn.Module, valid: Batches, *, at_once: bool = False) -> tuple[float, float]:
    """Loss and accuracy; `at_once` reads the sums when all batches are done."""
    model.eval()
    loss, right, n = 0.0, 0.0, 0
    for x, y in valid:
        pred = model(x)
        one = cross_entropy(pred, y, reduction="sum")
        hits = (pred.argmax(1) == y).sum()
        loss += one if at_once else one.item()
        right += hits if at_once else hits.item()
        n += len(y)
    return float(loss) / n, float(right) / n


# ---- onecycle ----------------------------------------------------------------------------------


def onecycle(job: Job) -> list[float]:
    """A Learner as it is by default: recorder, scheduler, guard."""
    metrics = [] if job.valid is None else [accuracy]
    data = (job.batches, job.valid)
    learn = Learner(data, job.model(), cross_entropy, metrics=metrics, wd=job.wd, device="cpu")
    with nullcontext() if job.progress else learn.no_logging():
        learn.fit_one_cycle(job.epochs, job.lr, warmup="cos")
    return learn.recorder.losses.tolist()


BY_HAND: dict[str, Callable[[Job], list[float]]] = {
    "plain": plain,
    "plain fused": plain_fused,
    "lean": lean,
    "kernel": kernel,
    "floor": floor,
    "onecycle": onecycle,
}
