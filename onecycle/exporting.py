"""The bare model in a file that other programs read: safetensors, torch.export or ONNX."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onecycle import batch as batches
from onecycle import checkpoint, checks, distributed, files, shards
from onecycle.extras import need

ROWS = 3  # of the batch that a model is traced with, which is no 1: torch takes that for a constant
SUFFIXES = (".safetensors", ".pt2", ".onnx")
PAYLOADS = ("weight_", "tensor_")  # what torch reads without unpickling
CPU = torch.device("cpu")


def write(path: files.PathLike, model: nn.Module, inputs: Callable[[], Any]) -> Path:
    """Write `model` as `Learner.export` says, and return the path.

    Args:
        path: the file, whose suffix is the format.
        model: it stays as it is.
        inputs: returns one batch of inputs; not called where there is no need.

    Raises:
        ImportError: a package of the extra `export` is missing.
        ValueError: another suffix; torch cannot follow the model.
    """
    file = files.as_path(path)
    kind = checks.choice("path: the suffix", file.suffix.lower(), SUFFIXES)
    if kind == ".safetensors":
        content = _tensors(bare(model))
    else:
        content = _program(bare(model), inputs(), onnx=kind == ".onnx")
    if distributed.rank():
        return file
    return files.write(file, lambda opened: opened.write(content))


def read(path: files.PathLike) -> dict[str, Any]:
    """Return what is in a file of `Learner.export` or `Learner.save`, for `restore`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or a program.
    """
    file = files.as_path(path)
    if file.suffix.lower() in (".pt2", ".onnx"):
        remedy = "load_model runs it" if file.suffix.lower() == ".pt2" else "onnxruntime runs it"
        raise ValueError(f"path: {str(path)!r} is a program, which no model can take; {remedy}")
    if file.suffix.lower() != ".safetensors":
        return checkpoint.load(path)
    return {"bare": _read_tensors(file)}


def restore(
    path: files.PathLike,
    saved: dict[str, Any],
    model: nn.Module,
    opt: torch.optim.Optimizer | None,
) -> None:
    """Take what `read` returned into `model` and, of `Learner.save`, `opt`.

    Raises:
        ValueError: it is of another model; `model` is as it was.
    """
    if "bare" not in saved:
        checkpoint.restore(path, saved, model, opt)
        return
    target = bare(model)
    difference = checkpoint.first_difference(target.state_dict(), saved["bare"])
    if difference is not None:
        raise ValueError(f"path: {str(path)!r} is of another model: {difference}")
    target.load_state_dict(saved["bare"])


def load_model(path: files.PathLike, model: nn.Module | None = None) -> nn.Module:
    """Return a model from a file, in evaluation mode; nothing in it is unpickled as code.

    Args:
        path: a file that `Learner.export` wrote, ".safetensors" or ".pt2", or one of
            `Learner.save`. A ".pt2" is a program, to be called with a batch of inputs: whoever runs
            it does what it says, so take it from those you trust.
        model: what takes the weights; a ".pt2" needs none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or of another model, which then is as it was; or a program that
            would have to be unpickled.

    >>> import tempfile
    >>> from onecycle import Learner, data, models
    >>> learn = Learner(data.digits(), models.simple_cnn((1, 8, 10)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = learn.save(f"{folder}/model.pth")
    ...     model = load_model(saved, models.simple_cnn((1, 8, 10)))
    >>> torch.equal(model[0].weight, learn.model[0].weight)
    True
    """
    file = files.as_path(path)
    if file.suffix.lower() == ".pt2" and model is None:
        return _load_program(file)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module that takes the weights, got {model!r}")
    restore(file, read(file), model, None)
    return model.eval()


def bare(model: nn.Module) -> nn.Module:
    """Return the model that torch.compile has wrapped, or the model itself.

    >>> model = nn.Linear(2, 2)
    >>> bare(model) is model
    True
    """
    inside = getattr(model, "_orig_mod", model)
    return inside if isinstance(inside, nn.Module) else model


# ---- safetensors -------------------------------------------------------------------------------


def _tensors(model: nn.Module) -> bytes:
    """Return the state of a model in the format of safetensors."""
    safetensors = need("safetensors.torch", "export")
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"model: {name!r} is {type(value).__name__}, safetensors has tensors")
    # A copy of each: the format has no names that share memory, as tied weights do.
    plain = {name: t.detach().to(CPU, copy=True) for name, t in shards.whole(state).items()}
    whole = {name: value.contiguous() for name, value in plain.items()}
    about = {"format": "pt", "written_by": "onecycle", "model": type(model).__name__}
    return bytes(safetensors.save(whole, metadata={**about, "torch": str(torch.__version__)}))


def _read_tensors(file: Path) -> dict[str, Tensor]:
    safetensors = need("safetensors.torch", "export")
    if not file.is_file():
        raise FileNotFoundError(f"path: there is no file {str(file)!r}")
    try:
        found: dict[str, Tensor] = safetensors.load(file.read_bytes())
    except Exception as error:
        if isinstance(error, OSError):
            raise
        raise checkpoint.DamagedError(
            f"path: {str(file)!r} cannot be read as safetensors, it is damaged or of another kind "
            f"({error})"
        ) from error
    return found


# ---- programs ----------------------------------------------------------------------------------


def _program(model: nn.Module, inputs: Any, *, onnx: bool) -> bytes:
    """Return the model as a program for batches of any size, as torch.export saves it or ONNX."""
    if onnx:
        for package in ("onnx", "onnxscript"):
            need(package, "export")
    if shards.is_sharded(model):
        raise ValueError(
            "model: torch.export cannot follow a sharded model; export its weights to "
            '"model.safetensors", and from a learner of the plain model that has loaded them'
        )
    # A copy: tracing calls the model, and may leave traces in it.
    traced = deepcopy(model).to(CPU).eval().requires_grad_(False)  # noqa: FBT003 - torch's own
    for tensor in (*traced.parameters(), *traced.buffers()):
        tensor.data = tensor.data.contiguous()  # how they lay in memory is for training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own parts
            exported = _traced(traced, inputs)
            if onnx:
                made = torch.onnx.export(exported, dynamo=True, verbose=False)
                return bytes(made.model_proto.SerializeToString())  # type: ignore[union-attr]
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise ValueError(
            f"model: torch.export cannot make a program of it ({reason}); "
            '"model.safetensors" takes its weights alone'
        ) from error
    exported.example_inputs = None
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    return buffer.getvalue()


def _traced(model: nn.Module, inputs: Any) -> torch.export.ExportedProgram:
    """Return the model as torch follows it, called as `batch.forward` does."""
    if hasattr(inputs, "to_numpy"):
        inputs = batches.as_tensor(inputs, "inputs")
    inputs = batches.to_device(inputs, CPU)
    n = batches.samples(inputs, None)
    rows = torch.export.Dim("batch")
    blank, shapes = _blank(inputs, n), _shapes(inputs, n, rows)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = blank
    elif isinstance(inputs, (tuple, list)):
        args, shapes = tuple(blank), tuple(shapes)
    else:
        args, shapes = (blank,), (shapes,)
    return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _blank(value: Any, n: int) -> Any:
    """Return zeros in the shape of a batch: no sample of the data gets into a file."""
    if isinstance(value, Tensor):
        size = (ROWS, *value.shape[1:]) if _has_rows(value, n) else value.shape
        return torch.zeros(size, dtype=value.dtype)
    return _inside(value, lambda item: _blank(item, n))


def _shapes(value: Any, n: int, rows: Any) -> Any:
    """Return which dimensions may change: the first of what has a row for each sample."""
    if isinstance(value, Tensor):
        return {0: rows} if _has_rows(value, n) else None
    return _inside(value, lambda item: _shapes(item, n, rows))


def _inside(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: change(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(change(item) for item in value)
    raise TypeError(
        f"inputs must be tensors, in tuples, lists or dicts, got {type(value).__name__}"
    )


def _has_rows(tensor: Tensor, n: int) -> bool:
    return tensor.ndim > 0 and len(tensor) == n


def _load_program(file: Path) -> nn.Module:
    if not file.is_file():
        raise FileNotFoundError(f"path: there is no file {str(file)!r}")
    content = file.read_bytes()
    try:
        _refuse_pickles(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's own parts
            return torch.export.load(io.BytesIO(content)).module()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise checkpoint.DamagedError(
            f"path: {str(file)!r} cannot be read as a program of torch.export, it is damaged, of "
            f"another kind, or would run code when it is read ({reason})"
        ) from error


def _refuse_pickles(content: bytes) -> None:
    """Refuse a program that torch.export.load would unpickle as code.

    It reads most tensors as they are; but tensors of other classes, objects and what fails to load
    as plain weights it unpickles, and compiled libraries it loads.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("it has two parts of one name")
        for name in names:
            if name.endswith("_config.json"):
                entries = json.loads(archive.read(name))["config"].values()
                plain = all(
                    not entry["use_pickle"] and entry["path_name"].startswith(PAYLOADS)
                    for entry in entries
                )
            else:
                plain = "aotinductor" not in name
            if not plain:
                raise ValueError(f"{name} holds objects")
            if name.endswith(".pt") and (pickled := archive.read(name)):
                torch.load(io.BytesIO(pickled), map_location="cpu", weights_only=True)
