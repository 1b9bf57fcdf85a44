"""The file around a state: written whole or not at all, read without running code."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onecycle import files

FORMAT = 1


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> Path:
    """Write `state` to `path`, whole or not at all, and return the path; a missing folder is made.

    Raises:
        OSError: the file cannot be written; what was there before is still there.
    """
    return files.write(path, lambda file: torch.save({"format": FORMAT, **state}, file))


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state in `path`, its tensors on the CPU. Nothing in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {str(path)!r}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"path: {str(path)!r} cannot be read as a checkpoint ({reason})"
        ) from error
    if not isinstance(state, dict) or state.keys() != {"format", "model", "optimizer"}:
        raise ValueError(f"path: {str(path)!r} is not a file that Learner.save wrote")
    if state["format"] != FORMAT:
        raise ValueError(
            f"path: {str(path)!r} has the format {state['format']}, this version reads {FORMAT}"
        )
    return state


def restore(
    path: str | os.PathLike[str], model: nn.Module, opt: torch.optim.Optimizer | None
) -> None:
    """Load a file of `save` into `model` and, unless None, `opt`; an error changes neither.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another model or optimizer; the message has the first
        difference.
    """
    saved = load(path)
    difference = first_difference(model.state_dict(), saved["model"])
    if difference is not None:
        raise ValueError(f"path: {str(path)!r} is of another model: {difference}")
    if opt is not None:
        kind, wanted = saved["optimizer"]["class"], type(opt).__name__
        if kind != wanted:
            raise ValueError(
                f"path: {str(path)!r} is of the optimizer {kind}, this learner has {wanted}; "
                "load(path, with_opt=False) takes the model alone"
            )
        try:
            opt.load_state_dict(saved["optimizer"]["state"])
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"path: {str(path)!r} is of other parameter groups: {error}"
            ) from error
    model.load_state_dict(saved["model"])


def states(model: nn.Module, opt: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what a file holds of a model and its optimizer."""
    return {
        "model": model.state_dict(),
        "optimizer": {"class": type(opt).__name__, "state": _plain(opt.state_dict())},
    }


def _plain(value: Any) -> Any:
    """Return `value` with numbers of numpy or of our own as Python's, which alone load safely."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    return float(value) if isinstance(value, float) else value


def first_difference(wanted: dict[str, Any], found: dict[str, Any]) -> str | None:
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
