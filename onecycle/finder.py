"""How `Learner.lr_find` looks for a learning rate: by a sweep, a race or the paper's range test.

Each trains aside, on the learner's own step and data, and leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any

import torch

from onecycle import batch as batches
from onecycle import checks, optimizers, suggest
from onecycle.callback import Callback
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.progress import SweepBar
from onecycle.callbacks.range_test import RangeTest
from onecycle.callbacks.scheduler import OneCycleScheduler
from onecycle.found import LRFind, LRRace, LRRangeTest

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

METHODS = ("sweep", "race", "linear")
CLOSER = 3  # steps of the closer look over those of the sweep
FIELD = (-1.0, -0.5, 0.0, 0.5, 1.0)  # decades around the centre of a race
FURTHER = 3  # entries that a race may add beyond its edge
ENOUGH = 2000  # samples on which validation is judged


def find(
    learn: Trainer,
    method: str,
    sweep: LRFinder,
    n_sweeps: int,
    refine: bool,
    values: Mapping[str, float],
) -> LRFind:
    """Return what `method` finds.

    Args:
        learn: whose model, data and optimizer are used; nothing in it changes.
        method: "sweep", "race" or "linear".
        sweep: the sweep that each of them begins with.
        n_sweeps: sweeps, of other batches each.
        refine: look closer where the sweep falls and turns.
        values: of "wd" and "mom" for the search, where the optimizer's own are not meant.
    """
    found = _sweep(learn, sweep, n_sweeps, values, "lr_find")
    place = suggest.bracket(found.lrs, found.losses) if refine else None
    if place is not None:
        low, high = place[0], min(place[1], sweep.end_lr)
        closer = LRFinder(low, high, CLOSER * sweep.num_it, sweep.stop_div)
        closeup = _sweep(learn, closer, n_sweeps, values, "closer")
        found = LRFind(found.lrs, *found.sweeps, closeup=closeup)
    if method == "race":
        return _race(learn, found, sweep, values)
    if method == "linear":
        return _range_test(learn, found, sweep, values)
    return found


def values_of(name: str, given: Any, opt: torch.optim.Optimizer) -> list[float]:
    """Return the values of wd or moms to compare, one for a number; none for None."""
    key = "wd" if name == "wd" else "mom"
    if given is None:
        return []
    several = isinstance(given, Sequence) and not isinstance(given, str)
    values = list(given) if several or getattr(given, "ndim", 0) == 1 else [given]
    if not values:
        raise ValueError(f"{name} must hold at least one value")
    if not optimizers.has(opt, key):
        raise ValueError(f"{name}: {type(opt).__name__} has no such hyper-parameter")
    top: dict[str, Any] = {} if key == "wd" else {"high": 1.0, "open_high": True}
    return [checks.real(name, value, low=0.0, **top) for value in values]


class Sample:
    """Batches of a loader at even distances that hold about `ENOUGH` samples together.

    The first ones would not do: many a validation set is sorted by class.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        """Yield every k-th batch."""
        length = len(self.loader) if isinstance(self.loader, Sized) else 0
        every = 1
        for i, batch in enumerate(self.loader):
            if i == 0:
                every = max(1, length * batches.samples(batch) // ENOUGH)
            if i % every == 0:
                yield batch


def _sweep(
    learn: Trainer, sweep: LRFinder, n_sweeps: int, values: Mapping[str, float], label: str
) -> LRFind:
    lrs: list[float] = []
    sweeps = []
    with learn.rehearsal(values) as rehearse:
        for k in range(n_sweeps):
            numbered = f"{label} {k + 1}/{n_sweeps}" if n_sweeps > 1 else label
            rehearse(sweep.num_it, [sweep, *_bar(learn, numbered, sweep.num_it)])
            sweep.check()
            lrs = max(lrs, sweep.lrs, key=len)
            sweeps.append(sweep.losses)
    return LRFind(lrs, *sweeps)


def _race(learn: Trainer, found: LRFind, sweep: LRFinder, values: Mapping[str, float]) -> LRRace:
    """Race a few learning rates around `found`; every round halves the field, doubles the cycle."""
    valid = _validation(learn, "race")
    steps, low, high = sweep.num_it, sweep.start_lr, sweep.end_lr

    def loss(steps: int, lr: float) -> float:
        with learn.rehearsal(values) as rehearse:
            moms = (
                None if "mom" in values or not optimizers.has_momentum(learn.opt) else (0.95, 0.85)
            )
            bar = _bar(learn, f"race {lr:.0e}", steps)
            schedule = OneCycleScheduler(lr, moms)
            scores: dict[str, float] = rehearse(
                steps, [schedule, *bar], then=lambda: learn.evaluate(valid)
            )
        return scores["valid_loss"]

    start = learn.evaluate(valid)["valid_loss"]
    centre, step = _centre(learn, found), 10.0 ** (FIELD[1] - FIELD[0])
    field = [lr for lr in (centre * 10.0**decades for decades in FIELD) if low <= lr <= high]
    if not field:
        raise ValueError(f"start_lr and end_lr leave no rate to race, {low:g} to {high:g}")
    first = {lr: loss(steps, lr) for lr in field}
    for _ in range(FURTHER):
        # The winner is to lie between two losers.
        best, step = (
            min(first, key=lambda lr: _order(first[lr])),
            10.0 ** float(FIELD[1] - FIELD[0]),
        )
        beyond = {max(first): best * step, min(first): best / step}.get(best)
        if beyond is None or not low <= beyond <= high:
            break
        first[beyond] = loss(steps, beyond)
    rounds = [first]
    while len(rounds[-1]) > 2:
        leaders = sorted(rounds[-1], key=lambda lr: _order(rounds[-1][lr]))
        steps *= 2
        rounds.append({lr: loss(steps, lr) for lr in leaders[: len(leaders) // 2]})
    return LRRace(rounds, start, sweep.num_it)


def _range_test(
    learn: Trainer, found: LRFind, sweep: LRFinder, values: Mapping[str, float]
) -> LRRangeTest:
    """Test from start_lr to where the sweep `found` diverged, or else to end_lr."""
    valid = _validation(learn, "linear")
    name = "accuracy" if "accuracy" in learn.metrics else "-valid_loss"

    def score() -> float:
        scores = learn.evaluate(valid)
        return scores["accuracy"] if name == "accuracy" else -scores["valid_loss"]

    last = found.points["divergence"]
    end_lr = last if math.isfinite(last) else float(found.lrs[-1])
    test = RangeTest(sweep.start_lr, end_lr, sweep.num_it, score)
    with learn.rehearsal(values) as rehearse:
        rehearse(test.num_it, [test, *_bar(learn, "range test", test.num_it)])
    return LRRangeTest(test.lrs, test.scores, name)


def _centre(learn: Trainer, found: LRFind) -> float:
    """Return the suggestion; without one the peak of the last fit, or the optimizer's own rate."""
    if not math.isnan(found):
        return float(found)
    recorder = learn.recorder
    last = recorder.lrs[recorder.fits[-1][0] :] if recorder.fits else recorder.lrs
    return float(last.max()) if len(last) else optimizers.read(learn.opt, "lr")


def _order(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _validation(learn: Trainer, method: str) -> Sample:
    if learn.data.valid is None:
        raise ValueError(f"method={method!r} judges on validation data, and this learner has none")
    return Sample(learn.data.valid)


def _bar(learn: Trainer, label: str, steps: int) -> list[Callback]:
    return [SweepBar(label, steps)] if learn.display.bar else []
