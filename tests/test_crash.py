"""Killed at any moment, and with any system call of a save failing, a run is never lost."""

import contextlib
import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import same
from runs import Case, begin, end_of, go_on, in_child

from onecycle import checkpoint, files

CASE = Case(opt="sgd", loader="in_memory", accumulate=3)
EVERY = {"every_steps": 1}
STATE = {"model": {"weight": torch.arange(300.0)}, "optimizer": {}}


def state(number):
    return {**STATE, "optimizer": {"number": number}}


# ---- killed ------------------------------------------------------------------------------------


def killed(folder, after):
    """Train and save at every step until a SIGKILL `after` so many seconds of it."""
    process = in_child(begin, CASE, folder, EVERY, wait=False)
    deadline = time.monotonic() + 60
    while not (folder / "run.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(after)
    process.kill()
    process.join()
    process.close()


def check_kills(tmp_path, n):
    whole = tmp_path / "whole"
    whole.mkdir()
    for _ in range(2):  # the first starts the server
        begun = time.monotonic()
        assert in_child(begin, CASE, whole, EVERY) == 0
        length = time.monotonic() - begun
    draw = random.Random(0)
    for number in range(n):
        folder = tmp_path / str(number)
        folder.mkdir()
        killed(folder, draw.uniform(0, length))
        found, damaged = checkpoint.newest(folder / "run.pt")
        assert found is not None
        assert damaged == []
        if not found[1]["run"]["finished"]:
            assert in_child(go_on, CASE, folder) == 0
            assert same(end_of(folder), end_of(whole)), number
            there = {file.name for file in folder.iterdir()}
            assert there == {"run.pt", "run.pt.1", "run.pt.trunk", "end.pt"}


def test_a_run_that_is_killed_at_any_moment_ends_the_same(tmp_path):
    check_kills(tmp_path, 200)


@pytest.mark.soak
def test_a_thousand_times(tmp_path):
    check_kills(tmp_path, 1000)


# ---- every system call -------------------------------------------------------------------------

CALLS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.listdir", "os.scandir")


class Disk:
    """Sees the system calls on files of a folder, and lets one of them fail."""

    def __init__(self):
        self.folder, self.calls, self.fails_at = None, [], None

    def __call__(self, event, args):
        if self.folder and event in CALLS and self.folder in str(args[0]):
            self.seen(event, args[0])

    def seen(self, event, path):
        self.calls.append((event, os.path.basename(str(path))))  # noqa: PTH119
        if len(self.calls) == self.fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    @contextlib.contextmanager
    def watched(self, folder, fails_at=None):
        self.folder, self.calls, self.fails_at = str(folder), [], fails_at
        try:
            yield self.calls
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def audit():
    disk = Disk()
    sys.addaudithook(disk)
    return disk


@pytest.fixture
def disk(audit, monkeypatch):
    sync = os.fsync

    def fsync(handle):
        audit.seen("fsync", Path(f"/proc/self/fd/{handle}").readlink())
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return audit


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_a_save_is_on_the_disk_before_it_has_its_name_and_before_the_oldest_goes(disk, tmp_path):
    path = tmp_path / "run.pt"
    for number in range(3):
        checkpoint.save(path, state(number), keep=2)
    with disk.watched(tmp_path) as calls:
        checkpoint.save(path, state(3), keep=2)
    order = [event for event, _ in calls if event in ("fsync", "os.link", "os.rename", "os.remove")]
    assert order == ["fsync", "os.link", "os.rename", "fsync", "os.rename"]
    places = [name for event, name in calls if event == "fsync"]
    assert places[0].startswith(".run.pt.tmp-")
    assert places[1] == tmp_path.name


@linux
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_every_system_call_may_fail(disk, tmp_path, keep):
    path = tmp_path / "run.pt"
    for number in range(4):
        checkpoint.save(path, state(number), keep)
    with disk.watched(tmp_path) as calls:
        checkpoint.save(path, state(4), keep)
    assert len(calls) >= 6
    newest = 4
    for fails_at in range(1, len(calls) + 1):
        with disk.watched(tmp_path, fails_at), contextlib.suppress(OSError):
            checkpoint.save(path, state(newest + 1), keep)
        (_, found), damaged = checkpoint.newest(path)
        assert found["optimizer"]["number"] in (newest, newest + 1)
        assert damaged == []
        newest = 10 * fails_at
        checkpoint.save(path, state(newest), keep)
        assert checkpoint.load(path)["optimizer"]["number"] == newest
        older = [f"run.pt.{i}" for i in range(1, keep)]
        assert sorted(file.name for file in tmp_path.iterdir()) == ["run.pt", *older]


@pytest.mark.parametrize("size", [0, 1, 100, 1000, 2000])
def test_a_write_that_fails_half_way_keeps_the_last_one_and_says_why(tmp_path, size):
    path = checkpoint.save(tmp_path / "run.pt", state(1), keep=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError, match=r"File too large.*run\.pt"):
            checkpoint.save(path, state(2), keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(path)["optimizer"]["number"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


def test_a_full_disk_keeps_the_last_one_and_says_why(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.name == "nt" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        path = checkpoint.save(tmp_path / "run.pt", state(1), keep=2)
        big = {**state(2), "model": {"weight": torch.zeros(100_000)}}
        with pytest.raises(OSError, match=r"No space left on device.*run\.pt"):
            checkpoint.save(path, big, keep=2)
        assert checkpoint.load(path)["optimizer"]["number"] == 1
        assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


# ---- left behind -------------------------------------------------------------------------------


def write_slowly(path):
    def fill(file):
        file.write(b"half")
        file.flush()
        (path.parent / "writing").touch()
        time.sleep(60)

    files.write(path, fill)


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    path = tmp_path / "run.pt"
    process = in_child(write_slowly, path, wait=False)
    while not (tmp_path / "writing").exists():
        time.sleep(0.005)
    checkpoint.save(path, state(1))
    assert len(list(tmp_path.glob(".run.pt.tmp-*"))) == 1
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process.close()
    checkpoint.save(path, state(2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.pt", "writing"]


@pytest.mark.parametrize("links", [True, False])
def test_a_crash_between_two_names_is_put_in_order(tmp_path, monkeypatch, links):
    path = tmp_path / "run.pt"
    for number in (1, 2):
        checkpoint.save(path, state(number), keep=3)
    if links:
        os.link(path, tmp_path / "run.pt.0")
    else:
        path.rename(tmp_path / "run.pt.0")
    assert checkpoint.newest(path)[0][1]["optimizer"]["number"] == 2
    checkpoint.save(path, state(3), keep=3)
    numbers = [checkpoint.load(file)["optimizer"]["number"] for file in files.versions(path)]
    assert numbers == [3, 2, 1]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "run.pt"
    for number in range(4):
        checkpoint.save(path, state(number), keep=2)
    numbers = [checkpoint.load(file)["optimizer"]["number"] for file in files.versions(path)]
    assert numbers == [3, 2]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.pt", "run.pt.1"]
