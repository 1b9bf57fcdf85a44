"""How `Learner.lr_find` looks for a learning rate: by a sweep, a race or the paper's range test.

Each trains aside, on the learner's own step and data, and leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from onecycle import batch as batches
from onecycle import checks, optimizers, suggest, together
from onecycle.callback import Callback
from onecycle.callbacks.lr_finder import LRFinder
from onecycle.callbacks.progress import SweepBar
from onecycle.callbacks.range_test import RangeTest
from onecycle.callbacks.scheduler import OneCycleScheduler
from onecycle.data.sharding import fills_in
from onecycle.distributed import World
from onecycle.found import LRFind, LROverlay, LRRace, LRRangeTest, LRStated
from onecycle.metrics import Metric, accuracy

if TYPE_CHECKING:
    from onecycle.trainer import Trainer

METHODS = ("sweep", "race", "linear")
KEYS = {"wd": "wd", "moms": "mom"}  # arguments, and how `optimizers.write` calls them
CLOSER = 2  # steps of the closer look over those of the sweep
NEXT = 10**0.5  # from one entry of a race to the next
FIELD = tuple(NEXT**k for k in range(-2, 3))  # entries of a race, over its centre
FURTHER = 3  # entries that a race may add beyond its edge
BEYOND = 2.0  # the last rate of a range test over the divergence
ENOUGH, FEWEST = 2000, 4  # samples on which validation is judged, batches that hold them


def search(
    learn: Trainer,
    sweep: LRFinder,
    method: str,
    n_sweeps: int,
    refine: bool,
    given: Mapping[str, Any],
) -> LRFind:
    """Return what `method` finds, or an overlay of that where `given` holds a list.

    Args:
        learn: whose model, data and optimizer are used; nothing in it changes.
        sweep: the sweep that every method begins with.
        method: "sweep", "race" or "linear".
        n_sweeps: sweeps, of other batches each.
        refine: look closer where the sweep falls and turns.
        given: "wd" and "moms": None for the optimizer's own, a number, or several to compare.

    Raises:
        ValueError, TypeError: a value out of its range, more than one list, or no validation data
        for a method that needs them.
    """
    checks.choice("method", method, METHODS)
    if method != "sweep" and learn.data.valid is None:
        raise ValueError(f"method={method!r} judges on validation data, and this learner has none")
    values = {name: values_of(name, one, learn.opt) for name, one in given.items()}
    compared = [name for name, one in given.items() if is_several(one)]
    if len(compared) > 1:
        raise ValueError("wd, moms: compare one at a time, and give the other as a number")
    fixed = {KEYS[name]: v[0] for name, v in values.items() if v and name not in compared}
    one = partial(find, learn, method, sweep, n_sweeps, refine)
    if not compared:
        return one(fixed)
    name = compared[0]
    return LROverlay(name, {v: one({**fixed, KEYS[name]: v}) for v in values[name]})


def find(
    learn: Trainer,
    method: str,
    sweep: LRFinder,
    n_sweeps: int,
    refine: bool,
    values: Mapping[str, float],
) -> LRFind:
    """Return what `method` finds under `values` of "wd" and "mom", the rest as for `search`."""
    stated = _stated(learn.opt)
    if stated is not None:
        return stated
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


def _stated(opt: torch.optim.Optimizer) -> LRStated | None:
    """Return the answer where a rate only multiplies a scale that the optimizer finds by itself."""
    finding = [one for one in together.members(opt) if optimizers.sets_scale(one)]
    if not finding:
        return None
    said = f"{' + '.join(map(together.name, finding))} sets its own scale"
    if len(finding) == len(together.members(opt)):
        return LRStated(1.0, f"{said}, and lr=1.0 is the factor meant for it: nothing was swept")
    return LRStated(
        math.nan,
        f"{said}, with lr=1.0, and the rest of {together.name(opt)} does not, so no sweep can move "
        "both: give a rate for each group, as a list",
    )


def values_of(name: str, given: Any, opt: torch.optim.Optimizer) -> list[float]:
    """Return the values of wd or moms for a search, one for a number; none for None."""
    if given is None:
        return []
    key = KEYS[name]
    values = list(given) if is_several(given) else [given]
    if not values:
        raise ValueError(f"{name} must hold at least one value")
    if not optimizers.has(opt, key):
        raise ValueError(f"{name}: {together.name(opt)} has no such hyper-parameter")
    top: dict[str, Any] = {} if key == "wd" else {"high": 1.0, "open_high": True}
    numbers = [checks.real(name, value, low=0.0, **top) for value in values]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{name} must hold different values, got {numbers}")
    return numbers


def is_several(given: Any) -> bool:
    """Tell whether `given` is a list or array of values, and not one of them."""
    scalar = getattr(given, "ndim", 1) == 0
    return isinstance(given, Iterable) and not isinstance(given, str) and not scalar


class Sample:
    """Batches of a loader at even distances that hold about `ENOUGH` samples together.

    The first ones would not do: many a validation set is sorted by class. So there are at least
    `FEWEST` batches, or all.
    """

    def __init__(self, loader: Iterable[Any], world: World | None = None) -> None:
        self.loader = loader
        self.world = world or World()  # the processes, each with a part of every batch

    def __iter__(self) -> Iterator[Any]:
        """Yield every k-th batch."""
        try:
            length = len(self.loader)  # type: ignore[arg-type] # a stream has none
        except TypeError:
            length = 0
        every = 1
        for i, batch in enumerate(self.loader):
            if i == 0:
                own = 0 if fills_in(self.loader, i) else batches.samples(*batches.split(batch))
                enough = length * sum(self.world.gather(own)) // ENOUGH
                every = max(1, min(enough, length // FEWEST))
            if i % every == 0 and not fills_in(self.loader, i):
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
    sample = _sample(learn)
    moms = (0.95, 0.85) if "mom" not in values and optimizers.has_momentum(learn.opt) else None

    def cycle(steps: int, lr: float) -> float:
        """The validation loss after a cycle; infinite after one that diverged."""
        with learn.rehearsal(values) as rehearse:
            callbacks = [OneCycleScheduler(lr, moms), *_bar(learn, f"race {lr:.0e}", steps)]
            loss: float = rehearse(steps, callbacks, lambda: _score(learn, sample)["valid_loss"])
        return loss if math.isfinite(loss) else math.inf

    start = _score(learn, sample)["valid_loss"]
    if not math.isfinite(start):
        raise ValueError(f"valid_loss is {start} before training: check the validation data")
    centre, low, high = _centre(learn, found), sweep.start_lr, sweep.end_lr
    field = [centre * ratio for ratio in FIELD if low <= centre * ratio <= high]
    if not field:
        raise ValueError(f"start_lr and end_lr leave no rate to race, {low:g} to {high:g}")
    steps = sweep.num_it
    first = {lr: cycle(steps, lr) for lr in field}
    for _ in range(FURTHER):
        # The winner is to lie between two losers.
        best = min(first, key=lambda lr: first[lr])
        beyond = best * NEXT if best == max(first) else best / NEXT
        if min(first) < best < max(first) or not low <= beyond <= high:
            break
        first[beyond] = cycle(steps, beyond)
    rounds = [first]
    while len(rounds[-1]) > 2:
        leaders = sorted(rounds[-1], key=lambda lr: rounds[-1][lr])
        steps *= 2
        rounds.append({lr: cycle(steps, lr) for lr in leaders[: max(2, len(leaders) // 2)]})
    return LRRace(rounds, start, sweep.num_it)


def _range_test(
    learn: Trainer, found: LRFind, sweep: LRFinder, values: Mapping[str, float]
) -> LRRangeTest:
    """Test from start_lr to beyond where the sweep `found` diverged, within end_lr."""
    sample = _sample(learn)
    counted = {
        name: metric
        for name, metric in learn.metrics.items()
        if metric is accuracy or name == "accuracy"
    }
    name = next(iter(counted), "-valid_loss")

    def score() -> float:
        scores = _score(learn, sample, counted)
        return scores[name] if counted else -scores["valid_loss"]

    beyond = BEYOND * found.points["divergence"]
    end_lr = min(beyond, sweep.end_lr) if math.isfinite(beyond) else float(found.lrs[-1])
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


def _sample(learn: Trainer) -> list[Any]:
    """Read the batches to judge on once, and leave the loader as it was."""
    valid: Iterable[Any] = () if learn.data.valid is None else learn.data.valid
    with learn.looking(valid):
        return list(Sample(valid, learn.world))


def _score(
    learn: Trainer, sample: list[Any], counted: Mapping[str, Metric] | None = None
) -> dict[str, float]:
    return learn.evaluate(sample, metrics=counted or {})


def _bar(learn: Trainer, label: str, steps: int) -> list[Callback]:
    return [SweepBar(label, steps)] if learn.display.bar else []
