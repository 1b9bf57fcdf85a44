"""R3c: a flipped bit is never loaded silently, and a damaged file is passed over."""

import random
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from helpers import same
from runs import Case, begin, end_of, go_on
from shared import child, differences, told, uninterrupted

from onecycle import checkpoint

CASE = Case(loader="in_memory")


def measure(options):
    """Flip bits of a checkpoint; then go on with a run whose newest file is damaged."""
    rng, failures = random.Random(options.seed), []
    found = {"refused": 0, "equal": 0, "wrong": 0, "unclear": 0}
    with TemporaryDirectory() as name:
        folder = Path(name)
        child(begin, CASE, folder, {}, (12, signal.SIGINT))
        path, damaged = folder / "run.pt", folder / "damaged.pt"
        content, good = path.read_bytes(), checkpoint.load(path)
        for _ in range(options.n):
            bit = rng.randrange(8 * len(content))
            damaged.write_bytes(flipped(content, bit))
            answer = loaded(damaged, good)
            found[answer] += 1
            failures += [f"bit {bit}: {answer}"] if answer in ("wrong", "unclear") else []
        failures += [line for _ in range(20) for line in passed_over(rng, folder, content, good)]
    text = f"{options.n} flipped bits: {found['refused']} refused, {found['equal']} loaded equal"
    text += f", {found['wrong']} silently wrong, {found['unclear']} not known as damage"
    return told("R3c", text, failures)


def flipped(content, bit):
    """The content with one bit changed."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def loaded(path, good):
    """What becomes of a damaged file."""
    try:
        found = checkpoint.load(path)
    except ValueError:
        return "refused"
    except OSError:  # as if the disk had failed: no older file is gone back to
        return "unclear"
    return "equal" if same(good, found) else "wrong"


def passed_over(rng, source, content, good):
    """Damage the newer of two files; return what is not as if it were not there."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "run.pt"
        (folder / "run.pt.1").write_bytes((source / "run.pt.1").read_bytes())
        path.write_bytes(content)
        while loaded(path, good) != "refused":  # some bits are of no use to anyone
            path.write_bytes(flipped(content, rng.randrange(8 * len(content))))
        if child(go_on_with_a_warning, folder) != 0:
            return ["a damaged file was not passed over with a warning"]
        return differences(uninterrupted(CASE), end_of(folder))


def go_on_with_a_warning(folder):
    """Finish the run, and fail without that warning."""
    with pytest.warns(UserWarning, match="going back to"):
        go_on(CASE, folder)
