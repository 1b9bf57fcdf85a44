"""Files that are written whole or not at all."""

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Any, BinaryIO

PathLike = str | os.PathLike[str]


def as_path(path: Any, name: str = "path") -> Path:
    """Return `path`, an argument called `name`, as a Path, if a file can have that name.

    Raises:
        TypeError: it is no name.
        IsADirectoryError: there is a folder of that name.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise TypeError(f"{name} must be the name of a file, got {path!r}")
    file = Path(path).expanduser()
    if os.fspath(path).endswith(("/", os.sep)):
        raise IsADirectoryError(f"{name}: {path!r} is a folder, give the name of a file")
    if file.is_dir():
        raise IsADirectoryError(f"{name}: {str(file)!r} is a folder, give the name of a file")
    return file


def as_folder(folder: Any, name: str = "folder") -> Path:
    """Return `folder`, an argument called `name`, as a Path; nothing is made.

    Raises:
        TypeError: it is no name.
        NotADirectoryError: there is a file of that name.
    """
    if not isinstance(folder, (str, os.PathLike)) or not os.fspath(folder):
        raise TypeError(f"{name} must be the name of a folder, got {folder!r}")
    found = Path(folder).expanduser()
    if found.exists() and not found.is_dir():
        raise NotADirectoryError(f"{name}: {str(found)!r} is a file, give the name of a folder")
    return found


def write(path: PathLike, fill: Callable[[BinaryIO], object], keep: int = 1) -> Path:
    """Have `fill` write the bytes of `path`, and return the path; a missing folder is made.

    The bytes go to a temporary file beside the target, reach the disk, and only then take its name,
    so a crash at any moment leaves either the old file or the new one. What a killed process left
    behind is put in order by the next write.

    Args:
        path: the file.
        fill: called with the open file.
        keep: how many to have afterwards: this one and those it replaces, see `versions`.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    path = as_path(path)
    _make_folder(path)
    _remove_leftovers(path)
    _settle(path, keep)
    temporary = path.with_name(f"{_prefix(path)}{uuid.uuid4().hex}")
    try:
        temporary.touch(exist_ok=False)
        with _owned(temporary):
            with temporary.open("wb") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            if keep > 1 and path.exists():
                _set_aside(path)
            temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
            _settle(path, keep)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    _sync_folder(path.parent)
    _settle(path, keep)
    spare = list(takewhile(Path.exists, map(_older(path), count(keep))))
    for old in reversed(spare):  # so that a crash leaves no gap, behind which nobody looks
        old.unlink()
    return path


def require_writable(path: PathLike) -> None:
    """Make the folder of `path`, and see whether a file can be written there; `path` stays.

    Raises:
        OSError: it cannot.
    """
    path = as_path(path)
    _make_folder(path)
    temporary = path.with_name(f"{_prefix(path)}{uuid.uuid4().hex}")
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise type(error)(f"path: {str(path)!r} cannot be written: {error}") from error


def write_text(path: PathLike, text: str) -> Path:
    """Write `text` to `path` as UTF-8, whole or not at all, and return the path."""
    return write(path, lambda file: file.write(text.encode()))


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"path: {str(path)!r} cannot be written: {error}") from error


def versions(path: PathLike) -> list[Path]:
    """Return the files there are of `path`, newest first: `path`, `path.1`, `path.2`, and so on."""
    path = Path(path)
    # One that a crash has caught between its names is called path.0.
    known = [path, _older(path)(0)]
    for number in count(1):
        known.append(_older(path)(number))
        if not known[-1].exists():
            break
    return [file for file in known if file.is_file()]


def _older(path: Path) -> Callable[[int], Path]:
    return lambda number: path.with_name(f"{path.name}.{number}")


def _set_aside(path: Path) -> None:
    """Give `path` a second name, so that replacing it does not lose it."""
    aside = _older(path)(0)
    try:
        os.link(path, aside)
    except OSError:  # not every file system has links
        path.replace(aside)


def _settle(path: Path, keep: int) -> None:
    """Let what is set aside take its place among the older ones, or be `path` again."""
    older = _older(path)
    aside = older(0)
    if not aside.exists():
        return
    if not path.exists():
        aside.replace(path)
    elif aside.samefile(path):
        aside.unlink()
    else:
        # The first name that is free, or that of the oldest, which is overwritten last of all.
        end = next(
            number for number in count(1) if number >= keep - 1 or not older(number).exists()
        )
        for number in reversed(range(end)):
            older(number).replace(older(number + 1))


def _prefix(path: Path) -> str:
    return f".{path.name}.tmp-"


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of `path` whose writers are dead."""
    for left in path.parent.iterdir():
        if left.name.startswith(_prefix(path)):
            with suppress(OSError), _owned(left) as owned:
                if owned:
                    left.unlink()


@contextmanager
def _owned(path: Path) -> Iterator[bool]:
    """Lock `path` as its writer does, and tell whether that was possible.

    Windows needs no lock: there nobody removes a file that is open.
    """
    if sys.platform == "win32":
        yield True
        return
    import fcntl

    handle = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Make the new name last; Windows cannot open a folder and does without."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
