"""How reliable training is: the bars R1 to R9, each by doing the real thing.

    python tests/benchmarks/reliability R2          # or all; exit status 1 if a bar is missed
    python tests/benchmarks/reliability R3 --n 100 --seed 1

A line for each measurement, and one for each failure. What is stopped in one process goes on in
another, whose generators are in another state. It needs Linux, and strace for a part of R3. Costs
are medians of turns, on a machine with nothing else to do.
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(1, str(TESTS))  # where the helpers of the tests are
os.environ["ONECYCLE_PROGRESS"] = "off"

import cost  # noqa: E402
import find  # noqa: E402
import flips  # noqa: E402
import kills  # noqa: E402
import leaks  # noqa: E402
import nan  # noqa: E402
import payloads  # noqa: E402
import resume  # noqa: E402
import torch  # noqa: E402
from shared import told  # noqa: E402


def bad_input(options):
    """The tests of bad input, all of which must pass."""
    files = [TESTS / f"test_{name}.py" for name in ("bad_input", "bad_resume", "broken_parts")]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=False)
    *_, last = done.stdout.strip().splitlines() or ["no output"]
    return told("R5", f"bad input: {last}", met=done.returncode == 0)


BARS = {
    "R1": find.measure,
    "R2": resume.measure,
    "R3": kills.measure,
    "R3b": cost.measure,
    "R3c": flips.measure,
    "R4": nan.measure,
    "R5": bad_input,
    "R6": leaks.broken_fits,
    "R7": payloads.measure,
    "R9": leaks.endurance,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bars", nargs="+", choices=[*BARS, "all"], help="what to measure")
    parser.add_argument("--n", type=int, default=1000, help="kills in R3, flips in R3c")
    parser.add_argument("--seed", type=int, default=0, help="of the kills and flips")
    given = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for jobs
    names = BARS if "all" in given.bars else given.bars
    met = [BARS[name](given) for name in names]
    sys.exit(not all(met))
