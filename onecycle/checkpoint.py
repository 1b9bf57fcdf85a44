"""The file around a state: written whole or not at all, checked, read without running code."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from onecycle import distributed, files, optimizers, shard_files, shards, together

FORMAT = 2  # 1 had no runs


class DamagedError(ValueError):
    """A file that cannot be read as a checkpoint."""


PLAIN = (str, int, float, bool, type(None))


def save(
    path: files.PathLike, state: Mapping[str, Any], keep: int = 1, *, apart: bool = False
) -> Path:
    """Write `state` to `path`, whole or not at all, and return the path; a missing folder is made.

    Args:
        path: the file.
        state: what `states` returns, and "run" beside it in a checkpoint of a run.
        keep: files to have afterwards, see `files.write`.
        apart: each process writes its shards into files of its own, see `shard_files`; else they
            are gathered, and the file is that of a model that is not sharded.

    Raises:
        TypeError: something in `state` is no tensor and no plain value.
        OSError: the file cannot be written; what was there before is still there.

    Of several processes the first one writes.
    """
    state, found = shards.split(state) if apart else (shards.whole(state), {})
    content = {"format": FORMAT, **{name: plain(value, name) for name, value in state.items()}}
    if found:
        content["shards"] = shard_files.write(files.as_path(path), found)

    def fill(file: BinaryIO) -> None:
        with _checksums():
            torch.save(content, file)

    if distributed.rank() > 0:
        return files.as_path(path)
    try:
        written = files.write(path, fill, keep)
        if shard_files.folder(written).exists():
            shard_files.remove_unused(written, _content)
        return written
    except RuntimeError as error:
        # torch hides the system's error behind its own when a write fails half-way.
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise


def load(path: files.PathLike) -> dict[str, Any]:
    """Return the state in `path`, its tensors on the CPU. Nothing in the file is run.

    Every byte is checked against the checksums in the file, which `torch.load` does not do.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not one of ours.
    """
    path = files.as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}")
    try:
        with path.open("rb") as file:
            _check(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
        if "shards" in state:
            shard_files.check(path, state["shards"])
    except PermissionError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedError(
            f"path: {str(path)!r} cannot be read as a checkpoint, it is damaged or of another kind "
            f"({reason})"
        ) from error
    if not isinstance(state, dict) or not {"format", "model", "optimizer"} <= state.keys():
        raise ValueError(f"path: {str(path)!r} is not a file that Learner.save wrote")
    if state["format"] not in range(1, FORMAT + 1):
        raise ValueError(
            f"path: {str(path)!r} has the format {state['format']}, "
            f"this version reads up to {FORMAT}"
        )
    return state


Found = tuple[Path, dict[str, Any]]


def newest(path: files.PathLike) -> tuple[Found | None, list[tuple[Path, str]]]:
    """Return the newest undamaged file of `path` with its state, None where there is no file.

    Beside it the newer ones that are damaged, each with what is wrong.

    Raises:
        ValueError: all there are are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for file in files.versions(path):
        try:
            return (file, load(file)), damaged
        except DamagedError as error:
            damaged.append((file, str(error)))
    if damaged:
        raise DamagedError("; ".join(reason for _, reason in damaged))
    return None, []


def restore(
    path: files.PathLike,
    saved: dict[str, Any],
    model: nn.Module,
    opt: torch.optim.Optimizer | None,
) -> None:
    """Take what `load` has read from `path` into `model` and, unless None, `opt`.

    Raises:
        ValueError: it is of another model or optimizer; the message has the first difference, and
        nothing was changed.
    """
    difference = first_difference(model.state_dict(), saved["model"])
    if difference is not None:
        raise ValueError(f"path: {str(path)!r} is of another model: {difference}")
    if opt is not None:
        difference = optimizer_difference(opt, model, saved["optimizer"])
        if difference is not None:
            raise ValueError(
                f"path: {str(path)!r} {difference}; "
                "load(path, with_opt=False) takes the model alone"
            )
        if saved.keys() & {"run", "best"}:
            # In the middle of a run the rates are those of a step, which no later fit wants.
            with optimizers.preserved(opt):
                optimizers.load(opt, saved["optimizer"]["state"])
        else:
            optimizers.load(opt, saved["optimizer"]["state"])
    shards.load(model, saved["model"])
    if opt is not None:
        optimizers.set_mode(opt, training=False)  # a run is saved where it trains


def states(model: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what a file holds of a model and its optimizer."""
    return {
        "model": model.state_dict(),
        "optimizer": {
            "class": together.name(opt),
            "names": _names(model, opt),
            "state": opt.state_dict(),
        },
    }


def plain(value: Any, where: str) -> Any:
    """Return `value` with numbers of numpy or of our own as Python's, which alone load safely.

    Raises:
        TypeError: it holds something that is no tensor and no plain value; it names the place.
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Mapping):
        return {plain(k, where): plain(item, f"{where}[{k!r}]") for k, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, (*PLAIN, torch.Size, torch.dtype, torch.device, Tensor)):
        return value
    raise TypeError(
        f"{where} is a {type(value).__name__}: a file holds tensors, numbers, strings, None, and "
        "lists, tuples and dicts of them, so that loading it runs no code"
    )


def first_difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Return where two model states first differ in name or shape, in words; None if they fit."""
    for name, tensor in wanted.items():
        if name not in found:
            return f"{name!r} is missing in the file"
        if not (isinstance(tensor, Tensor) and isinstance(found[name], Tensor)):
            continue
        here, there = tuple(tensor.shape), tuple(found[name].shape)
        if here != there:
            return f"{name!r} is {here} in the model and {there} in the file"
    extra = next((name for name in found if name not in wanted), None)
    return None if extra is None else f"{extra!r} is in the file and not in the model"


def optimizer_difference(
    opt: torch.optim.Optimizer, model: nn.Module, found: Mapping[str, Any]
) -> str | None:
    """Return how the optimizer of a file differs from `opt`, in words; None if they fit."""
    if found["class"] != together.name(opt):
        return f"is of the optimizer {found['class']}, this learner has {together.name(opt)}"
    here = [len(group["params"]) for group in opt.param_groups]
    there = [len(group["params"]) for group in found["state"]["param_groups"]]
    if here != there:
        return f"is of other parameter groups: they hold {there} parameters, here {here}"
    names = _names(model, opt)
    for mine, its in zip(names, found.get("names", names), strict=True):
        for name, other in zip(mine, its, strict=True):
            if name != other:
                return f"has {other!r} in the optimizer where this learner has {name!r}"
    return None


def _names(model: nn.Module, opt: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names of the parameters of each group, by which their state finds them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(p), "") for p in group["params"]] for group in opt.param_groups]


def _content(path: Path) -> dict[str, Any]:
    """Return what is in a file, its tensors unread."""
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True, "mmap": True}
    content: dict[str, Any] = torch.load(path, **options)
    return content


@contextmanager
def _checksums() -> Iterator[None]:
    """Have torch compute checksums, which a process can do without for speed."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(compute_crc32=True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def _check(file: BinaryIO) -> None:
    """Compare every member with its checksum."""
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")
    file.seek(0)
