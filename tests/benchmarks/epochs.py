"""How many epochs, and what next: what `epoch_find`, `extend` and the callbacks are good for.

    ONECYCLE_DATA=FOLDER python tests/benchmarks/epochs.py --cache FOLDER [--part budgets,...]

The contenders of a part start alike, seed by seed: a seed is of the weights, of the order and of
the training images; the images to validate on are the same for all. A figure is a mean over seeds,
with its standard error; a difference is paired, with the standard error of the differences. Results
are kept in FOLDER and not computed again. `--smoke` runs everything on the built-in digits, which
shows that it runs and nothing else. `RESULTS.md` has the tables.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from epochs_runs import Result, averages, budgets, cycles, extend, search, stopping
from epochs_tasks import SMOKE, TASKS, Task
from harness import aligned, machine, show

GRID = "complete 1cycles"


def regrets(results: Sequence[Result], name: str, of: str) -> tuple[list[float], list[float]]:
    """Loss above the best budget, and octaves from it, of a choice with each seed.

    The judge is a mean of grids: "all", over all seeds; "others", without the seed that chose;
    "held", over all seeds on what is held out; "points", the same as "all" but points of accuracy.
    """
    sizes = results[0]["sizes"]
    grids = np.array([_grid(result, of) for result in results])
    lost, away = [], []
    for k, result in enumerate(results):
        judges = np.delete(grids, k, axis=0) if of == "others" and len(grids) > 1 else grids
        mean, place = judges.mean(axis=0), sizes.index(result["chosen"][name][0])
        lost.append(float(mean[place] - mean.min()))
        away.append(float(place - mean.argmin()))
    return lost, away


def _grid(result: Result, of: str) -> list[float]:
    """What the complete 1cycles cost."""
    if of == "points":
        return [-value for value in result["points"]]
    values: list[float] = result["held"] if of == "held" else result["curves"][GRID]
    return values


def choices(results: dict[str, list[Result]]) -> list[list[str]]:
    """A row for each way to choose, over all tasks."""
    rows = [
        ["", "epochs", "regret", "worst", "by other seeds", "held out", "octaves off", "points"]
    ]
    for name in next(iter(results.values()))[0]["chosen"]:
        lost = {
            judge: [regrets(of, name, judge)[0] for of in results.values()]
            for judge in ("all", "others", "held", "points")
        }
        away = [np.abs(regrets(of, name, "all")[1]).mean() for of in results.values()]
        cost = np.mean([r["chosen"][name][1] for of in results.values() for r in of])
        means = {judge: np.mean([np.mean(one) for one in every]) for judge, every in lost.items()}
        worst = max(map(max, lost["all"]))
        figures = (means["all"], worst, means["others"], means["held"])
        cells = (f"{value:.4f}" for value in figures)
        rows.append([name, f"{cost:.2f}", *cells, f"{np.mean(away):.2f}", f"{means['points']:.2f}"])
    return rows


def by_task(results: dict[str, list[Result]]) -> list[list[str]]:
    """What was chosen with each seed, on each task."""
    rows = [["", "chosen by", "epochs", "regret", "by other seeds", "octaves off"]]
    for task, of in results.items():
        names = list(of[0]["chosen"])
        for name in (names[0], *names[-2:]):
            said = ", ".join(str(r["chosen"][name][0]) for r in of)
            lost, away = regrets(of, name, "all")
            others = np.mean(regrets(of, name, "others")[0])
            cells = (f"{np.mean(lost):.4f}", f"{others:.4f}", f"{np.mean(away):+.1f}")
            rows.append([task, name, said, *cells])
    return rows


def curves(results: dict[str, list[Result]]) -> list[list[str]]:
    """The loss of each budget, as it is and as epoch_find reads it."""
    sizes = next(iter(results.values()))[0]["sizes"]
    rows = [["", "loss of", *map(str, sizes)]]
    for task, of in results.items():
        for kind in of[0]["curves"]:
            means = np.transpose([r["curves"][kind] for r in of]).tolist()
            rows.append([task, kind, *(pm(values, 3) for values in means)])
    return rows


def ends(results: dict[str, list[Result]]) -> list[list[str]]:
    """What it takes, and the model that it leaves."""
    rows = [["", "processor time over one largest run", "finish(), less a 1cycle as long"]]
    for task, of in results.items():
        times = [r["time"] for r in of]
        spread = f"{np.median(times):.2f} ({min(times):.2f} .. {max(times):.2f})"
        rows.append([task, spread, pm([r["finished"] for r in of], 4, sign=True)])
    return rows


def show_budgets(results: dict[str, list[Result]]) -> None:
    """All tables of `epoch_find`."""
    show("Ways to choose, means over tasks", aligned(choices(results)))
    show("Choices by task", aligned(by_task(results)))
    show("Loss by budget", aligned(curves(results)))
    show("Time, and the model at the end", aligned(ends(results)))


# ---- tables ----------------------------------------------------------------------------------


def pm(values: Sequence[float], digits: int, *, sign: bool = False) -> str:
    """The mean, and its standard error where there are two or more."""
    mean = f"{np.mean(values):{'+' if sign else ''}.{digits}f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.{digits}f}"


def show_rows(title: str, results: dict[str, list[Result]], base: str | None = None) -> None:
    """A table for each figure, a column for each task.

    The first row is that of `base`, or of the first contender; the others are differences from it.
    """
    first = next(iter(results.values()))[0]
    base = base or next(iter(first))
    names = [base, *(name for name in first if name != base)]
    counted = ["epochs"] if "epochs" in first[base] else []
    for key in [key for key in first[base] if key != "epochs"]:
        digits = 2 if key.startswith("accuracy") else 4
        rows = [["", *counted, *results]]
        for name in names:
            trained = [r[name]["epochs"] for of in results.values() for r in of] if counted else []
            row = [name, *([f"{np.mean(trained):.1f}"] if counted else [])]
            for of in results.values():
                own, other = ([r[it][key] for r in of] for it in (name, base))
                less = [a - b for a, b in zip(own, other, strict=True)]
                row.append(pm(own, digits) if name == base else pm(less, digits, sign=True))
            rows.append(row)
        show(f"{title}: {key}, and differences from the first row", aligned(rows))


Show = Callable[[dict[str, list[Result]]], None]
PARTS: dict[str, tuple[Callable[[Task, int], Result], Show, str]] = {
    "budgets": (budgets, show_budgets, ""),
    "extend": (extend, partial(show_rows, "extend"), ""),
    "stopping": (stopping, partial(show_rows, "Early stopping, held-out images"), "noise"),
    "cycles": (cycles, partial(show_rows, "Cycles"), ""),
    "averages": (averages, partial(show_rows, "Averages", base="1cycle"), ""),
    "search": (search, partial(show_rows, "find, held-out images"), "mnist-sgd,noise-adamw_bn"),
}


def tasks_of(part: str, smoke: bool) -> list[Task]:
    """The tasks on which a part is measured: where its names begin a task's."""
    names = tuple(PARTS[part][2].split(","))
    return SMOKE if smoke else [task for task in TASKS if task.name.startswith(names)]


def measured(job: tuple[str, Task, int], cache: Path) -> Result:
    """One part on one task with one seed, from the cache where it is there."""
    part, task, seed = job
    path = cache / f"{part}.{task.name}.{seed}.json"
    if not path.exists():
        path.write_text(json.dumps(PARTS[part][0](task, seed)))
    result: Result = json.loads(path.read_text())
    return result


def _one_thread() -> None:
    torch.set_num_threads(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, required=True, help="folder of results")
    parser.add_argument("--part", default=",".join(PARTS), metavar="PART,...")
    parser.add_argument("--seeds", type=int, default=5, help="at most; a task may have fewer")
    parser.add_argument("--processes", type=int, default=2, help="0 is this one")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(arguments)
    args.cache.mkdir(parents=True, exist_ok=True)
    args.rounds, args.threads = args.seeds, 1
    print(machine(args))
    for part in args.part.split(","):
        tasks = tasks_of(part, args.smoke)
        jobs = [(part, task, seed) for task in tasks for seed in range(min(task.seeds, args.seeds))]
        start = time.perf_counter()
        measure = partial(measured, cache=args.cache)
        if args.processes:
            with ProcessPoolExecutor(args.processes, initializer=_one_thread) as pool:
                found = list(pool.map(measure, jobs))
        else:
            found = list(map(measure, jobs))
        named = list(zip(jobs, found, strict=True))
        PARTS[part][1]({task.name: [r for job, r in named if job[1] is task] for task in tasks})
        print(f"\n{part}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
