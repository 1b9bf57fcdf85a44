"""Files that are written whole or not at all."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

PathLike = str | os.PathLike[str]


def write(path: PathLike, fill: Callable[[BinaryIO], object]) -> Path:
    """Have `fill` write the bytes of `path`, and return the path; a missing folder is made.

    The bytes go to a temporary file beside the target, reach the disk, and only then take its name,
    so a crash leaves either the old file or the new one.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path: {str(path)!r} is a folder, give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return path


def write_text(path: PathLike, text: str) -> Path:
    """Write `text` to `path` as UTF-8, whole or not at all, and return the path."""
    return write(path, lambda file: file.write(text.encode()))


def _sync_folder(folder: Path) -> None:
    """Make the new name last; Windows cannot open a folder and does without."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
