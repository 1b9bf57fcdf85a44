"""R3: what is saved survives kills at random times and writes that fail; the order of its calls."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from tempfile import TemporaryDirectory

import numpy as np
from runs import Case, begin, go_on
from shared import KILLED, child, differences, finished, told, tried, uninterrupted

from onecycle import Checkpoint, checkpoint

CASES = (Case(loader="in_memory"), Case())
TESTS = Path(__file__).resolve().parents[2]


def measure(options):
    """Kills at random times, the order of system calls, and writes that fail."""
    return all([killed(options), ordered(), full()])


def killed(options):
    """Kill a process that saves after every step, at random times; finish the run in another."""
    rng, found = random.Random(options.seed), {}
    lengths = {case: length(case) for case in CASES}
    for i in range(options.n):
        case = CASES[i // 2 % 2]
        found[i] = kill(rng, case, lengths[case], elsewhere=i % 2 == 1, keep=1 + i // 4 % 2)
    text = f"{options.n} SIGKILLs, TMPDIR elsewhere in {options.n // 2}: "
    return tried("R3", text + "after {} of {} the run is there, whole, newest and tidy", found)


def kill(rng, case, longest, *, elsewhere, keep):
    """Kill one run and take it up; return what went wrong."""
    with (
        TemporaryDirectory() as name,
        TemporaryDirectory(dir="/dev/shm" if elsewhere else name) as temporary,
    ):
        folder, code = Path(name, "run"), 0
        while code != KILLED:  # else it was finished before
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            process = started(case, folder, temporary, keep)
            time.sleep(rng.uniform(0.0, longest))
            process.kill()
            process.join()
            code = process.exitcode
        told_of = int((folder / "saved").read_text().split()[-1])
        left = temporary_files(folder)
        wrong = [f"{len(left)} temporary files"] if len(left) > 1 else []
        wrong += [f"left in TMPDIR: {file}" for file in Path(temporary).iterdir()]
        try:
            found = checkpoint.load(folder / "run.pt")
        except (ValueError, OSError) as error:
            wrong.append(f"the run is lost: {error}")
        else:
            step = found["run"]["place"]["step"]
            wrong += [f"step {step} was found where {told_of} was saved"] if step < told_of else []
            wrong += rest(case, folder, found)
        return [f"after step {told_of}", *wrong] if wrong else []


def rest(case, folder, found):
    """What is wrong with the end of a run whose checkpoint holds `found`."""
    if found["run"]["finished"]:  # there is nothing to go on with
        return differences({"model": found["model"]}, uninterrupted(case))
    wrong = finished(case, folder)
    return [*wrong, "a temporary file outlived the next save"] if temporary_files(folder) else wrong


def started(case, folder, temporary, keep):
    """A process that trains and saves, once it has saved for the first time."""
    process = child(train, case, folder, temporary, keep, wait=False)
    while not (folder / "saved").exists() or not (folder / "saved").read_text():
        time.sleep(0.001)
    return process


def train(case, folder, temporary, keep):
    """Train, save after every step, and write down each step when it is saved for certain."""
    os.environ["TMPDIR"], tempfile.tempdir = temporary, None
    save = Checkpoint.save

    def save_and_tell(self, learn, **options):
        save(self, learn, **options)
        os.write(log, b"%d\n" % learn.step)

    Checkpoint.save = save_and_tell
    log = os.open(folder / "saved", os.O_CREAT | os.O_WRONLY)
    begin(case, folder, {"every_steps": 1, "keep": keep})


def length(case):
    """Seconds that a run takes after its first checkpoint."""
    with TemporaryDirectory() as name:
        process = started(case, Path(name), name, 2)
        start = time.perf_counter()
        process.join()
        return time.perf_counter() - start


def temporary_files(folder):
    """Those beside the checkpoint."""
    return [file.name for file in folder.iterdir() if ".tmp" in file.name]


def ordered():
    """Watch by strace that a file is on the disk before it takes its name, and what comes after."""
    if shutil.which("strace") is None:
        return told("R3", "strace is not here: order of system calls not checked")
    calls = "fsync,fdatasync,link,linkat,rename,renameat,renameat2,unlink,unlinkat"
    with TemporaryDirectory() as name:
        folder, log = Path(name, "runs"), Path(name, "log")
        folder.mkdir()
        code = "import pathlib, runs; runs.begin(runs.Case(), pathlib.Path({!r}), {!r})"
        code = code.format(str(folder), {"every_steps": 1})
        command = ["strace", "-f", "-y", "--seccomp-bpf", "-e", f"trace={calls}", "-o", str(log)]
        subprocess.run(
            [*command, sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
            check=True,
        )
        lines = [line for line in log.read_text().splitlines() if str(folder) in line]
    steps = "".join(letter(line, folder) for line in lines)
    saves = re.findall(r"FL?ND[OU]*", steps)
    met = len(saves) >= 5 and "".join(saves) == steps
    text = f"strace, {len(saves)} saves: fsync(file), rename, fsync(folder), then the older ones"
    return told("R3", text, [] if met else [steps, *lines])


def letter(line, folder):
    """File synced, Linked as the older one, Named, Directory synced, Older one moved, Unlinked."""
    call = re.sub(r"^\d+\s+", "", line)
    if call.startswith(("fsync", "fdatasync")):
        return "D" if f"<{folder}>)" in call else "F"
    if call.startswith("link"):
        return "L"
    if call.startswith("unlink"):
        return "U"
    return "N" if f'"{folder}/run.pt") ' in call else "O"


def full():
    """Let a write fail at 100 offsets: the file before it stays, and the error says why."""
    case, found = CASES[0], {}
    with TemporaryDirectory() as name:
        source = Path(name, "source")
        source.mkdir()
        child(begin, case, source, {"every_steps": 4}, (6, signal.SIGKILL))
        content = (source / "run.pt").read_bytes()
        for offset in np.linspace(0, len(content), 100, endpoint=False).astype(int).tolist():
            folder = Path(name, str(offset))
            shutil.copytree(source, folder)
            child(overflow, case, folder, offset)
            said = (folder / "error").read_text()
            wrong = [] if f"{folder}/run.pt" in said and "File too large" in said else [said]
            same = (folder / "run.pt").read_bytes() == content
            wrong += [*([] if same else ["the file has changed"]), *temporary_files(folder)]
            wrong += finished(case, folder)
            found[f"offset {offset}"] = wrong
    return tried("R3", "failing writes: {} of {} kept the last one and said why", found)


def overflow(case, folder, offset):
    """Go on where no file may grow beyond `offset`; write down the error of the first save."""
    limits, said = getrlimit(RLIMIT_FSIZE), "no error"
    setrlimit(RLIMIT_FSIZE, (offset, limits[1]))
    try:
        go_on(case, folder)
    except OSError as error:
        said = str(error)
    setrlimit(RLIMIT_FSIZE, limits)
    (folder / "error").write_text(said)
