"""How long a start takes: the import, and from calling `fit` to the first batch.

    python tests/benchmarks/import_time.py

1. `import onecycle` less `import torch`, each in a fresh process, in turns; the peers beside it;
   and which heavy packages are loaded afterwards that `import torch` alone does not load.
2. From calling `fit_one_cycle` to the first `on_batch_begin`, of a new Learner each time, in one
   process; the first of all is told by itself, as it loads what is loaded at first use.
"""

import json
import time
from functools import partial
from statistics import median

from contenders import tiny_batches, tiny_mlp
from harness import aligned, chosen, in_fresh_process, machine, measured, parser, show, table

HEAVY = ("matplotlib", "pandas", "IPython", "torchvision", "PIL", "tqdm", "sklearn", "scipy")
MODULES = {
    "torch": "torch",
    "onecycle": "onecycle",
    "fastai": "fastai.basics",
    "Lightning": "lightning",
    "ignite": "ignite.engine",
    "skorch": "skorch",
    "accelerate": "accelerate",
}
CODE = (
    "import sys, time, json; start = time.perf_counter(); import {}; "
    "took = 1e3 * (time.perf_counter() - start); "
    "print(json.dumps([took, [m for m in {!r} if m in sys.modules]]))"
)


def imported(found: dict[str, list[str]], name: str) -> float:
    """Return milliseconds of an import in a fresh process, and note what was loaded."""
    took, found[name] = json.loads(in_fresh_process("-c", CODE.format(MODULES[name], HEAVY)))
    return took


def first_batch_ms() -> float:
    """Milliseconds from the call of `fit_one_cycle` to its first batch."""
    from onecycle import Callback, CancelTrain, Learner

    class Stop(Callback):
        def on_batch_begin(self, learn: Learner) -> None:
            self.reached = time.perf_counter()
            raise CancelTrain

    stop = Stop()
    learn = Learner((tiny_batches(100), None), tiny_mlp(), callbacks=[stop], device="cpu")
    with learn.no_logging():
        start = time.perf_counter()
        learn.fit_one_cycle(1, 1e-2)
    return 1e3 * (stop.reached - start)


def main() -> None:
    """Print both."""
    args = parser(__doc__).parse_args()
    names = chosen(
        MODULES, args.only, {name: module.split(".")[0] for name, module in MODULES.items()}
    )
    print(machine(args))
    found: dict[str, list[str]] = {}
    contenders = {name: partial(imported, found, name) for name in names}
    runs = measured(contenders, args.rounds, args.threads, apart=False)
    show("import, ms", table(runs, "ms", "torch"))
    if "torch" in runs:
        rows = [["beyond torch", "ms", "min", "max", "loaded with it"]]
        for name in [name for name in names if name != "torch"]:
            extra = [a - b for a, b in zip(runs[name], runs["torch"], strict=True)]
            loaded = [module for module in found[name] if module not in found["torch"]]
            values = (median(extra), min(extra), max(extra))
            rows.append([name, *(f"{value:,.1f}" for value in values), ", ".join(loaded) or "-"])
        show("import less that of torch in the same round, ms", aligned(rows))
    first = first_batch_ms()
    starts = measured({"onecycle": first_batch_ms}, args.rounds, args.threads, apart=False)
    title = f"from the call of fit_one_cycle to its first batch; the first of all {first:.1f} ms"
    show(title, table(starts, "ms", digits=2))


if __name__ == "__main__":
    main()
