"""R6, R9: broken fits, long fits and many fits leave nothing behind, and grow by little."""

import gc
import multiprocessing
import os
import signal
import statistics
import time
import tracemalloc
from pathlib import Path

import torch
from helpers import Log
from runs import BATCHES, Case, make
from shared import Soak, child, told, tried
from torch import nn

from onecycle import DataLoaders, Learner
from onecycle.callback import EVENTS

STEPS, FITS = 200_000, 1_000
BLOCK = 8192  # the history grows by so many steps at a time


def standing(learn):
    """What a fit must leave as it was."""
    owners = [vars(owner).items() for owner in (*learn.model.modules(), learn.opt)]
    hooks = [len(value) for own in owners for name, value in own if name.endswith("_hooks")]
    return {
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "modes": [module.training for module in learn.model.modules()],
        "hooks": sum(hooks),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "processes": len(multiprocessing.active_children()),
        "callbacks": len(learn.callbacks),
    }


def changes(before, learn):
    """What does not stand as before; threads and pipes of workers have a second to end."""
    for _ in range(20):
        now = standing(learn)
        if now == before:
            break
        time.sleep(0.05)
    return [f"{key}: {before[key]}, then {now[key]}" for key in before if before[key] != now[key]]


# ---- R6: interrupts --------------------------------------------------------------------------


class PlantedError(Exception):
    """Raised in a hook."""


class Pressed(Log):
    """Presses Ctrl-C at the given occurrence of an event."""

    def seen(self, event):
        self.events.append(event)
        if (event, self.events.count(event)) in self.at:
            signal.raise_signal(signal.SIGINT)


def broken_fits(options):
    """Ctrl-C and an exception in every event: nothing is left and a second fit trains."""
    errors = (KeyboardInterrupt, PlantedError)
    found = {f"{error.__name__} in {e}": broken(e, error) for e in EVENTS for error in errors}
    return tried("R6", "interrupts: {} of {} cases leave nothing", found)


def broken(event, planted):
    """Break a fit off in the second occurrence of an event; return what is not right then."""
    learn = make(Case(loader="workers"))
    learn.model.eval()
    steps = []  # whether all of the model was in train mode
    learn.opt.register_step_post_hook(
        lambda *_: steps.append(all(part.training for part in learn.model.modules()))
    )
    place = (event, 1 if event.startswith("on_train") else 2)
    at = Log({place: PlantedError}) if planted is PlantedError else Pressed({place: None})
    around = [Log(), Log()]  # before the callback that fails, and after it
    learn.fit(1, 1e-2)
    gc.collect()  # here only: what a broken fit held must go without it
    before = standing(learn)
    steps.clear()
    arrived, notes = None, ""
    try:
        learn.fit(3, 1e-2, callbacks=[around[0], at, around[1]])
    except (PlantedError, KeyboardInterrupt, RuntimeError) as error:
        arrived, notes = type(error), " ".join(getattr(error, "__notes__", []))
    wrong = [] if arrived is planted else [f"{arrived} arrived"]
    if planted is PlantedError and not ("Log" in notes and event in notes):
        wrong.append(f"its notes are {notes!r}")
    wrong += changes(before, learn)
    if [log.events.count("on_train_end") for log in around] != [1, 1]:
        wrong.append("on_train_end did not run for all")
    losses = len(learn.recorder.losses) - BATCHES
    wrong += [] if losses == len(steps) else [f"{losses} losses, {len(steps)} steps"]
    steps.clear()
    learn.fit(2, 1e-2)
    good = steps == [True] * 2 * BATCHES
    return wrong if good else [*wrong, "a second fit does not train in train mode"]


# ---- R9: endurance ---------------------------------------------------------------------------


def endurance(options):
    """Memory and speed of a long run, and what is left of many short ones."""
    met = [child(work) == 0 for work in (speed, memory, many_fits)]
    return all(met)


def small(samples):
    """A learner of a linear model, with a sample in a batch."""
    x = torch.randn(samples, 4)
    return Learner(DataLoaders.from_tensors(x, x[:, :1], batch_size=1), nn.Linear(4, 1))


def resident():
    """Bytes of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held():
    """Bytes that Python has allocated and still needs."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def speed():
    """Train for 200,000 steps in 100 epochs."""
    tenth = STEPS // 10
    learn, soak = small(STEPS // 100), Soak(STEPS, tenth, resident)
    learn.fit(100, 1e-4, callbacks=[soak])
    first, last = (statistics.median(part) for part in (soak.took[:tenth], soak.took[-tenth:]))
    text = f"{len(learn.recorder.losses):,} steps: the last tenth at {first / last:.3f} of the "
    text += f"speed of the first (bar 0.95); {soak.growth():.0f} B a step resident, with 100 rows"
    return told("R9", text, met=first / last >= 0.95)


def memory():
    """Look at what Python holds, after one and after six whole blocks of history."""
    steps = 6 * BLOCK
    learn, soak = small(steps), Soak(steps, BLOCK, held)
    tracemalloc.start()
    learn.fit(1, 1e-4, callbacks=[soak])
    text = f"history: {soak.growth():.1f} B a step (bar 16)"
    return told("R9", text, met=round(soak.growth()) <= 16)  # every block has a header


def many_fits():
    """Fit 1,000 times for a step each."""
    learn = small(1)
    tracemalloc.start()
    for i in range(FITS):
        learn.fit(1, 1e-4)
        if i + 1 == FITS // 10:
            before, python, whole = standing(learn), held(), resident()
    fits = FITS - FITS // 10
    growth, left = (held() - python) / fits, changes(before, learn)
    text = f"{FITS:,} fits: {growth:.0f} B of Python a fit (bar 3,000), "
    text += f"{(resident() - whole) / fits:.0f} B resident; nothing else grows"
    return told("R9", text, left, met=growth <= 3000)
