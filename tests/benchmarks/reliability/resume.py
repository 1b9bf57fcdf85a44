"""R2: stopped by Ctrl-C or SIGKILL, a run goes on in another process, the same to the last bit."""

import signal
from pathlib import Path
from tempfile import TemporaryDirectory

from runs import begin
from shared import INTERRUPTED, KILLED, VARIANTS, child, finished, tried

# Batches of training, 0 to 7 and 10 to 17, and of validation; 9 and 10 are around an epoch's end.
PLACES = (0, 3, 7, 8, 9, 10, 14, 19)
# Ctrl-C saves where it stops; what is killed must have been saved before.
SIGNALS = {
    "Ctrl-C": (signal.SIGINT, {}, INTERRUPTED),
    "SIGKILL": (signal.SIGKILL, {"every_steps": 1}, KILLED),
}


def measure(options):
    """Every variant, stopped at every place in both ways."""
    found = {
        f"{name}, {how} at batch {place}": stopped_and_resumed(case, place, how)
        for name, case in VARIANTS.items()
        for place in PLACES
        for how in SIGNALS
    }
    return tried("R2", "resume: {} of {} cases bit-identical", found)


def stopped_and_resumed(case, place, how):
    """What differs from the run that was never stopped."""
    number, rules, wanted = SIGNALS[how]
    with TemporaryDirectory() as name:
        folder = Path(name)
        code = child(begin, case, folder, rules, (place, number))
        if code != wanted:
            return [f"the run was not stopped, its exit code is {code}"]
        return finished(case, folder)
