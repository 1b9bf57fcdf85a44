"""Batches: nested tuples, lists and dicts of tensors, moved, split, counted and fed."""

from collections.abc import Callable, Iterator, Mapping
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from onecycle.notes import note

TARGET_KEYS = ("target", "targets", "label", "labels", "y")


def default_device() -> torch.device:
    """Return cuda when there is one, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def as_device(device: torch.device | str | None) -> torch.device:
    """Return `device`, the default one for None, once it is known to work.

    Raises:
        TypeError: it is no device.
        ValueError: there is no such device here.
    """
    if device is None:
        return default_device()
    try:
        return torch.zeros(1, device=device).device
    except TypeError:
        raise TypeError(f"device must be a torch.device or its name, got {device!r}") from None
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={device!r} cannot be used: {reason}") from None


def as_tensor(value: Any, name: str = "tensors") -> Tensor:
    """Return an array, a data frame, a series or a list as a tensor; float64 becomes the default.

    A tensor is returned as it is: who made it chose its type.

    Raises:
        TypeError: it holds no numbers; the message names it `name`.

    >>> as_tensor(np.zeros(2)).dtype
    torch.float32
    """
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{name} must hold numbers, got {shorten(repr(value), 99)}")
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    return tensor.to(torch.get_default_dtype()) if array.dtype == np.float64 else tensor


def to_device(batch: Any, device: torch.device) -> Any:
    """Return `batch` with every tensor, array and object that has a `to` on `device`.

    Tensors are moved to a GPU without waiting. What cannot be moved stays as it is.

    >>> to_device({"x": torch.ones(2), "ids": ["a", "b"]}, torch.device("cpu"))
    {'x': tensor([1., 1.]), 'ids': ['a', 'b']}
    """
    if isinstance(batch, Tensor):
        if batch.device == device:
            return batch
        # Who reads a copy on the CPU would not wait for it.
        return batch.to(device, non_blocking=device.type != "cpu")
    if type(batch) in (tuple, list):  # of all kinds by far the most frequent
        moved = [
            value if type(value) is Tensor and value.device == device else to_device(value, device)
            for value in batch
        ]
        return moved if isinstance(batch, list) else tuple(moved)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biufc":
        return as_tensor(batch).to(device)
    return batch


def split(batch: Any) -> tuple[Any, Any]:
    """Return `batch` as (inputs, target); the target is None where there is none.

    * a sequence: the last item is the target, those before it are the inputs; a sequence of one has
      no target;
    * a mapping: the target is under "target", "targets", "label", "labels" or "y"; the rest are the
      inputs;
    * anything else is the inputs.

    >>> split(("x1", "x2", "y"))
    (['x1', 'x2'], 'y')
    >>> split({"x": 1, "label": 2})
    ({'x': 1}, 2)
    """
    if isinstance(batch, (tuple, list)):
        if len(batch) == 2:
            return batch[0], batch[1]
        if len(batch) == 1:
            return batch[0], None
        return list(batch[:-1]), batch[-1] if batch else None
    if not isinstance(batch, Mapping):
        return batch, None
    key = next((key for key in TARGET_KEYS if key in batch), None)
    inputs = {name: value for name, value in batch.items() if name != key}
    return inputs, batch[key] if key is not None else None


def joined(batch: Any, inputs: Any, target: Any) -> Any:
    """Return a batch of the form of `batch` with other inputs and target, as `split` gives them.

    >>> joined(("x1", "x2", "y"), *split(("a", "b", "c")))
    ('a', 'b', 'c')
    >>> joined({"x": 1, "label": 2}, {"x": 3}, 4)
    {'x': 3, 'label': 4}
    """
    if isinstance(batch, Mapping):
        return {name: inputs.get(name, target) for name in batch}
    return (*inputs, target) if len(batch) > 2 else (inputs, target)


def each(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return a nested batch with `function` of its tensors.

    >>> each(Tensor.sum, [torch.ones(2), {"y": None}])
    [tensor(2.), {'y': None}]
    """
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is dict:
        return {key: each(function, item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(each(function, item) for item in value)
    return value


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a nested batch, in its order.

    >>> tensors([torch.tensor(1), {"y": torch.tensor(2)}])
    [tensor(1), tensor(2)]
    """
    found: list[Tensor] = []
    each(found.append, value)
    return found


def require_target(batch: Any, target: Any) -> None:
    """Refuse a training batch that has nothing to learn from."""
    if target is not None:
        return
    if isinstance(batch, Mapping):
        found = f"a mapping with the keys {list(batch)}"
        remedy = f"put the target under one of {list(TARGET_KEYS)}"
    else:
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        found, remedy = f"a {type(batch).__name__}{size}", "yield (inputs, target)"
    raise ValueError(f"data: a batch without target, {found}; {remedy}")


def forward(model: Callable[..., Any], inputs: Any) -> Any:
    """Return `model` of `inputs`: several inputs as arguments, a mapping as keyword arguments."""
    try:
        if isinstance(inputs, Tensor):
            return model(inputs)
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence):
            return model(*inputs)
        return model(inputs)
    except Exception as error:
        stored = isinstance(inputs, Tensor) and inputs.dtype == torch.uint8
        hint = "; bytes become floats by normalize=(mean, std) of DataLoaders" if stored else ""
        note(error, f"raised by the model, of inputs {shape(inputs)} of the data{hint}")
        raise


def shape(value: Any) -> str:
    """Return the shapes in a nested batch, in words for an error.

    >>> shape({"x": torch.zeros(3, 2), "ids": ["a"]})
    '{x: (3, 2), ids: [str]}'
    """
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shape(item)}" for key, item in value.items()) + "}"
    if type(value) in (tuple, list):
        inside = ", ".join(map(shape, value[:8]))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return type(value).__name__


def samples(inputs: Any, target: Any) -> int:
    """Return the number of samples: the length of the target, or of the inputs if it has none.

    A batch in which nothing has a length counts as one sample.

    Raises:
        ValueError: a batch of length 0.

    >>> samples({"x": torch.zeros(3, 2), "scale": torch.tensor(1.0)}, torch.zeros(3))
    3
    """
    if type(target) is Tensor and target.ndim and target.shape[0]:
        return target.shape[0]
    lengths = [*_lengths(target), *_lengths(inputs)]
    if lengths and not any(lengths):
        raise ValueError("data: a batch without samples; leave it out")
    return next(filter(None, lengths), 1)


def _lengths(value: Any) -> Iterator[int]:
    """Yield the first dimension of every tensor in `value`."""
    if isinstance(value, PackedSequence):
        yield int(value.batch_sizes[0])
    elif isinstance(value, Tensor):
        if value.ndim:
            yield len(value)
    elif isinstance(value, (tuple, list)) and _one_for_each(value):
        yield len(value)
    elif isinstance(value, (Mapping, tuple, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _lengths(part)


def _one_for_each(value: Any) -> bool:
    """Tell whether a sequence has an item for each sample: mappings, or unlike tensors."""
    if value and all(isinstance(item, Mapping) for item in value):
        return True
    lengths = {len(item) for item in value if isinstance(item, Tensor) and item.ndim}
    return len(lengths) > 1


def finite(value: Any) -> bool:
    """Tell whether all numbers in a nested batch are finite.

    >>> finite({"x": torch.tensor([1.0, float("nan")])})
    False
    """
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    if isinstance(value, Mapping):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, (tuple, list)) else True


def widened(value: Any) -> Any:
    """Return `value` with tensors of half precision as float32.

    >>> widened([torch.ones(1, dtype=torch.bfloat16)])
    [tensor([1.])]
    """
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
    if isinstance(value, Mapping):
        return {key: widened(item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(widened(item) for item in value)
    return value


def concat(parts: list[Any]) -> Any:
    """Return batches of one shape joined along the first dimension, inside tuples and dicts.

    >>> concat([(torch.ones(1), torch.zeros(1)), (torch.ones(2), torch.zeros(2))])
    (tensor([1., 1., 1.]), tensor([0., 0., 0.]))
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts) if first.ndim else torch.stack(parts)
    if isinstance(first, Mapping):
        return {key: concat([part[key] for part in parts]) for key in first}
    if isinstance(first, (tuple, list)):
        return tuple(concat(list(column)) for column in zip(*parts, strict=True))
    return parts
