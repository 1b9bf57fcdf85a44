"""How much a suggested learning rate costs: the regret of every rule on every task.

    python tests/benchmarks/lr_find_regret.py --cache FOLDER [--half report] [--repeats 10]

The regret is the best score on the grid of a task (the mean over its seeds, in points) less the
score at the suggested rate, between grid points by interpolation over log10(lr), beyond its ends
that of the end. The best of a grid of noisy means is too good, so a regret of about 0.1 is none.
The answers from scratch are also held against runs four times as long, of three seeds, but for two
tasks where that would take hours.
Rules of other packages run on the same losses as their own smoothing and stopping would have it;
they are in the table where the extra `bench` is installed. Results are kept in FOLDER and not
computed again. `RESULTS.md` has the table.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lr_find_tasks import TASKS, Task

from onecycle import Learner, LRFind, suggest

Curve = tuple[list[float], list[float]]
Answer = float  # nan is no answer
NAN = math.nan
DEFAULTS = {"sgd": 0.1, "adamw": 1e-3}
# Raw sweeps, from, to and in how many steps: those of most packages, Lightning's, and both with as
# many steps as lr_find takes.
RANGES = {
    "usual": (1e-7, 10.0, 100),
    "lightning": (1e-8, 1.0, 100),
    "usual, 300 steps": (1e-7, 10.0, 300),
    "lightning, 300 steps": (1e-8, 1.0, 300),
}
LONGER = 4  # times the epochs, for the second table
COSTLY = 3  # repeats of what costs three searches or more


# ---- measuring -------------------------------------------------------------------------------


def grid(task: Task) -> dict[float, list[float]]:
    """The scores of each seed, by learning rate."""
    return {lr: [task.score(lr, seed) for seed in range(task.seeds)] for lr in task.grid}


def answers(task: Task, repeats: int, best: float) -> dict[str, Any]:
    """What `lr_find` says from fresh and from trained starts, and raw sweeps for the others."""
    found: dict[str, Any] = {"answers": {}, "trained": {}, **{name: [] for name in RANGES}}
    for k in range(repeats):
        fresh = task.learner(100 + k)
        _note(found["answers"], ways(fresh, costly=k < COSTLY))
        for name, (low, high, steps) in RANGES.items():
            found[name].append(_raw(fresh, low, high, steps))
        if task.first is None:
            trained = task.learner(100 + k, trained=best)
            _note(found["trained"], {"lr_find()": trained.lr_find()})
            for name, (low, high, steps) in RANGES.items():
                raw = _raw(trained, low, high, steps)
                found.setdefault(f"trained_{name}", []).append(raw)
    return found


def ways(learn: Learner, *, costly: bool) -> dict[str, LRFind]:
    """The answers of this package, by name."""
    found = {"lr_find()": learn.lr_find(), "lr_find(refine=False)": learn.lr_find(refine=False)}
    if costly:
        found["lr_find(n_sweeps=3)"] = learn.lr_find(n_sweeps=3)
        found['lr_find(method="race")'] = learn.lr_find(method="race")
    return found


def _note(kept: dict[str, Any], found: dict[str, LRFind]) -> None:
    for name, one in found.items():
        low, high = one.band
        kept.setdefault(name, []).append([float(one), low, high, one.confidence])


def _raw(learn: Learner, start_lr: float, end_lr: float, steps: int) -> Curve:
    found = learn.lr_find(start_lr, end_lr, steps, stop_div=False, refine=False)
    return found.lrs.tolist(), found.losses.tolist()


def measured(task: Task, repeats: int, cache: Path) -> dict[str, Any]:
    """Everything about a task, from the cache where it is there."""
    torch.set_num_threads(1)
    means = _means(task, cache / f"{task.name}.grid.json")
    longer = replace(task, epochs=LONGER * task.epochs, seeds=min(task.seeds, 3))
    long = (
        _means(longer, cache / f"{task.name}.x{LONGER}.grid.json")
        if task.longer and not task.first
        else {}
    )
    best = max(means, key=lambda lr: means[lr])
    said = _cached(cache / f"{task.name}.answers.json", lambda: answers(task, repeats, best))
    return {"task": task, "means": means, "long": long, "best": best, **said}


def _means(task: Task, path: Path) -> dict[float, float]:
    scores = _cached(path, lambda: {f"{lr:.6g}": values for lr, values in grid(task).items()})
    return {float(lr): float(np.mean(values)) for lr, values in scores.items()}


def _cached(path: Path, make: Callable[[], Any]) -> Any:
    if not path.exists():
        path.write_text(json.dumps(make()))
    return json.loads(path.read_text())


def regret(means: dict[float, float], lr: Answer) -> float:
    """Points lost at `lr`; nan where there is no answer, or no grid."""
    if not (math.isfinite(lr) and lr > 0 and means):
        return NAN
    x = np.log10(list(means))
    return max(means.values()) - float(np.interp(math.log10(lr), x, list(means.values())))


# ---- rules of others -------------------------------------------------------------------------


def averaged(losses: Sequence[float], beta: float, shift: int = 0) -> list[float]:
    """The debiased exponential mean; `shift` is Lightning's, which divides by a step too many."""
    mean, out = 0.0, []
    for k, loss in enumerate(losses, start=1):
        mean = beta * mean + (1 - beta) * loss
        out.append(mean / (1 - beta ** (k + shift)))
    return out


def stopped(losses: Sequence[float], factor: float) -> list[float]:
    """The losses up to the first above `factor` times the best so far; nan does not stop."""
    best, out = math.inf, []
    for loss in losses:
        out.append(loss)
        if loss > factor * best:
            break
        best = min(best, loss)
    return out


def fastai_rule(name: str) -> Callable[[Curve], Answer]:
    """valley, slide, steep or minimum of fastai, on its smoothed and cut losses."""
    from fastai.callback import schedule

    rule = getattr(schedule, name)

    def answer(curve: Curve) -> Answer:
        smooth = stopped(averaged(curve[1], 0.98), 4)
        n = len(curve[0])
        lrs, losses = torch.tensor(curve[0][: len(smooth)]), torch.tensor(smooth)
        lrs, losses = lrs[n // 10 : -5], losses[n // 10 : -5]
        finite = ~losses.isnan()
        try:
            return float(rule(lrs[finite], losses[finite], n)[0])
        except (IndexError, ValueError):
            return NAN

    return answer


def lightning_rule(curve: Curve) -> Answer:
    """Lightning's suggestion, on its own range."""
    from lightning.pytorch.tuner.lr_finder import _LRFinder

    smooth = stopped(averaged(curve[1], 0.98, shift=1), 4)
    found = _LRFinder("exponential", curve[0][0], curve[0][-1], len(curve[0]))
    found.results = {"lr": curve[0][: len(smooth)], "loss": smooth}
    lr = found.suggestion()
    return NAN if lr is None else float(lr)


def ignite_rule(curve: Curve) -> Answer:
    """Ignite's suggestion."""
    from ignite.handlers.lr_finder import FastaiLRFinder

    smooth: list[float] = []
    for loss in curve[1]:
        smooth.append(0.05 * loss + 0.95 * smooth[-1] if smooth else loss)
    smooth = stopped(smooth, 5)
    found = FastaiLRFinder()
    found._history = {"lr": curve[0][: len(smooth)], "loss": smooth}
    try:
        return float(found.lr_suggestion())
    except RuntimeError:
        return NAN


def middle(curve: Curve) -> Answer:
    """sqrt(steepest divergence), the rule that this one began with."""
    points = suggest.suggest(*curve).points
    low, high = points["steepest"], points["divergence"]
    return math.sqrt(low * high) if math.isfinite(low * high) else NAN


def _spread(rule: Callable[..., Answer], curve: Curve) -> Answer:
    return rule(*curve)


def others() -> dict[str, tuple[str, Callable[[Curve], Answer]]]:
    """Rules on raw sweeps by name, and on which of the `RANGES`."""
    rules: dict[str, tuple[str, Callable[[Curve], Answer]]] = {
        "sqrt(steepest divergence)": ("usual", middle)
    }
    for name in ("valley", "slide", "steep", "minimum"):
        rules[f"suggest.{name}"] = ("usual", partial(_spread, getattr(suggest, name)))
    try:
        for name in ("valley", "slide", "steep", "minimum"):
            rules[f"fastai {name}"] = ("usual", fastai_rule(name))
        import ignite
        import lightning

        rules[f"Lightning {lightning.__version__}"] = ("lightning", lightning_rule)
        rules[f"ignite {ignite.__version__}"] = ("usual", ignite_rule)
    except ImportError as error:
        print(f"without the rules of other packages: {error}; pip install -e .[bench]")
    longer = {
        f"{name}, 300 steps": (f"{sweep}, 300 steps", rule) for name, (sweep, rule) in rules.items()
    }
    return rules | longer


# ---- the table -------------------------------------------------------------------------------


def by_rule(tasks: Sequence[dict[str, Any]]) -> dict[str, list[list[Answer]]]:
    """The answers of each rule, a list for each task."""
    rules = {name: [[a[0] for a in t["answers"][name]] for t in tasks] for name in _ours(tasks)}
    for name, (curves, rule) in others().items():
        rules[name] = [[rule(curve) for curve in task[curves]] for task in tasks]
    fixed = [[DEFAULTS[t["task"].opt]] * len(t["usual"]) for t in tasks]
    rules["always 0.1 (SGD), 1e-3 (AdamW)"] = fixed
    return rules


def _ours(tasks: Sequence[dict[str, Any]]) -> list[str]:
    return list(tasks[0]["answers"])


def summary(tasks: Sequence[dict[str, Any]]) -> str:
    """The table over all tasks, a line for each rule."""
    lines = [
        "| rule | mean | p90 | worst | longer runs: mean | p90 | worst | scatter | no answer |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, given in by_rule(tasks).items():
        lrs = [(t, lr) for t, answers in zip(tasks, given, strict=True) for lr in answers]
        cells = [name, *_losses(lrs, "means"), *_losses(lrs, "long")]
        silent = sum(math.isnan(lr) for _, lr in lrs)
        scatter = np.nanmean([_scatter(answers) for answers in given])
        lines.append(f"| {' | '.join(cells)} | {scatter:.2f} | {silent}/{len(lrs)} |")
    return "\n".join(lines)


def _losses(lrs: Sequence[tuple[dict[str, Any], Answer]], grid: str) -> list[str]:
    lost = [regret(task[grid], lr) for task, lr in lrs]
    known = [value for value in lost if math.isfinite(value)]
    if not known:
        return ["", "", ""]
    return [f"{v:.2f}" for v in (np.mean(known), np.percentile(known, 90), max(known))]


def per_task(tasks: Sequence[dict[str, Any]], name: str = "lr_find()") -> str:
    """The table of one rule, a line for each task."""
    lines = [
        "| task | best lr | its score | said | regret | worst | longer | scatter | band's ends |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for t in tasks:
        said = t["answers"][name]
        lrs = [a[0] for a in said]
        lost = [regret(t["means"], lr) for lr in lrs]
        ends = [np.nanmean([regret(t["means"], a[i]) for a in said]) for i in (1, 2)]
        lines.append(
            f"| {t['task'].name} | {t['best']:.2g} | {max(t['means'].values()):.2f} | "
            f"{np.nanmedian(lrs):.2g} | {np.nanmean(lost):.2f} | {np.nanmax(lost):.2f} | "
            f"{np.nanmean([regret(t['long'], lr) for lr in lrs]) if t['long'] else NAN:.2f} | "
            f"{_scatter(lrs):.2f} | {ends[0]:.2f}, {ends[1]:.2f} |"
        )
    return "\n".join(lines)


def trained(tasks: Sequence[dict[str, Any]]) -> str:
    """How often each rule answers on a model that is already trained."""
    kept = [t for t in tasks if t["trained"]]
    silent = {"lr_find()": [math.isnan(a[0]) for t in kept for a in t["trained"]["lr_find()"]]}
    for name, (curves, rule) in others().items():
        lists = [t[f"trained_{curves}"] for t in kept]
        silent[name] = [math.isnan(rule(curve)) for curves_ in lists for curve in curves_]
    lines = ["| rule | no answer on a trained model |", "|---|---|"]
    lines += [f"| {name} | {sum(nans)}/{len(nans)} |" for name, nans in silent.items()]
    return "\n".join(lines)


def _scatter(lrs: Iterable[Answer]) -> float:
    known = [math.log10(lr) for lr in lrs if math.isfinite(lr) and lr > 0]
    return float(np.std(known, ddof=1)) if len(known) > 1 else NAN


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--half", choices=["choose", "report"], default="report")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    half = [task for task in TASKS if task.half == args.half]
    with ProcessPoolExecutor(args.processes) as pool:
        tasks = list(pool.map(partial(measured, repeats=args.repeats, cache=args.cache), half))
    kinds = {
        "classification from scratch": [t for t in tasks if t["task"].kind == "scratch"],
        "regression from scratch": [t for t in tasks if t["task"].kind == "regression"],
        "pretrained": [t for t in tasks if t["task"].kind == "pretrained"],
    }
    for name, chosen in kinds.items():
        print(f"{len(chosen)} tasks, {name}\n\n{summary(chosen)}\n")
    print(f"{per_task(tasks)}\n\n{trained(tasks)}")


if __name__ == "__main__":
    main()
