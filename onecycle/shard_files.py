"""Shards in files, through torch.distributed.checkpoint: each process writes and reads its own.

The shards of a checkpoint are in a folder of their own, in torch's format. The file that names it,
with a checksum of each file in there, is written last: without it the folder is nothing, and it is
removed by the next checkpoint.
"""

from __future__ import annotations

import pickle
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onecycle import shards
from onecycle.distributed import World

METADATA = ".metadata"
BLOCK = 1 << 22
# What torch's metadata consists of. It is a pickle, which could name anything else, too.
KNOWN = {
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},  # since Python 3.13
}
State = dict[str, Any]


def folder(path: Path) -> Path:
    """Return where the shards of the checkpoint `path` and of those before it are.

    >>> folder(Path("run.pt")).name
    'run.pt.shards'
    """
    return path.with_name(f"{path.name}.shards")


def write(path: Path, tensors: dict[str, Tensor]) -> State:
    """Write shards into a new folder, all processes together, and return what is to be known of it.

    Args:
        path: of the checkpoint.
        tensors: DTensors by name.

    Returns:
        Its name beside `path`, and a checksum for each file in it.

    Raises:
        OSError: they cannot be written.
    """
    dcp, world = _torch(), World()
    made: Path = world.first(lambda: _made(path))
    try:
        dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(made))
    except dcp.CheckpointException as error:
        raise OSError(f"the shards cannot be written: {_reason(error)}") from error
    own = [METADATA] if world.rank == 0 else []
    own += sorted(file.name for file in made.glob(f"__{world.rank}_*"))
    sums: State = {}
    for part in world.gather({name: _checksum(made / name) for name in own}):
        sums |= part
    return {"folder": f"{made.parent.name}/{made.name}", "files": sums}


def check(path: Path, record: State) -> None:
    """Refuse shards that are not as they were written.

    Args:
        path: of the checkpoint.
        record: what `write` has returned.

    Raises:
        ValueError: one is missing or damaged.
    """
    for name, checksum in record["files"].items():
        file = _beside(path, record) / name
        if not file.is_file() or _checksum(file) != checksum:
            raise ValueError(f"the file {str(file)!r} is missing or damaged")


def filled(path: Path, saved: State, model: nn.Module) -> State:
    """Return a loaded state with its shards, all processes together.

    They lie as a parameter of `model` of the same shape does, whatever the number of processes that
    has written them; each process has the whole where there is none.

    Args:
        path: of the checkpoint.
        saved: what is in it; a state without shards is returned as it is.
        model: which is to take it.

    Raises:
        ValueError: they cannot be read.
    """
    if "shards" not in saved:
        return saved
    dcp = _torch()
    parameters = {tuple(p.shape): p for p in model.parameters() if shards.is_shard(p)}
    found: dict[str, Tensor] = {}

    def allocated(name: str, meta: Tensor) -> Tensor:
        parameter = parameters.get(tuple(meta.shape))
        if parameter is None:
            found[name] = torch.empty(meta.shape, dtype=meta.dtype)
        else:
            found[name] = torch.empty_like(parameter.detach(), dtype=meta.dtype)
        return found[name]

    state: State = shards.mapped(saved, allocated, _is_meta)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is (unavailable|disabled)")
            dcp.load(found, storage_reader=_reader(_beside(path, saved["shards"])))
    except dcp.CheckpointException as error:
        raise ValueError(
            f"path: the shards of {str(path)!r} cannot be read: {_reason(error)}"
        ) from error
    return {name: value for name, value in state.items() if name != "shards"}


def remove_unused(path: Path, read: Callable[[Path], State]) -> None:
    """Remove the shards that no checkpoint beside `path` names.

    Args:
        path: of the newest checkpoint.
        read: returns what is in a file.
    """
    named = set()
    for file in path.parent.iterdir():
        if not (file.is_file() and file.name.startswith(path.name)):
            continue
        try:
            named.add(read(file)["shards"]["folder"])
        except OSError:
            return  # it may name some, once it can be read again
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it names none
            continue
    for made in folder(path).glob("*"):
        if f"{made.parent.name}/{made.name}" not in named:
            shutil.rmtree(made, ignore_errors=True)


def _made(path: Path) -> Path:
    made = folder(path) / uuid.uuid4().hex
    made.mkdir(parents=True)
    return made


def _beside(path: Path, record: State) -> Path:
    parent, name = str(record["folder"]).split("/")
    return path.parent / parent / name


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            value = zlib.crc32(block, value)
    return value


def _is_meta(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _reason(error: Any) -> str:
    """Return the first of the errors that processes have had, in a line."""
    first = next(iter(error.failures.values()), (error,))[0]
    return f"{type(first).__name__}: {first}".splitlines()[0]


def _reader(made: Path) -> Any:
    """Return a reader of torch's that runs no code of the files that it reads."""
    reader = _torch().FileSystemReader(made)

    def read(**_: Any) -> Any:
        with (made / METADATA).open("rb") as file:
            metadata = _Metadata(file).load()
        metadata.storage_meta.load_id = reader.load_id
        return metadata

    reader.read_metadata = read
    return reader


def _torch() -> Any:
    from torch.distributed import checkpoint

    return checkpoint


class _Metadata(pickle.Unpickler):
    """Reads torch's metadata, in which there is nothing but its own plain classes."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or name in KNOWN.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"metadata of shards must not name {module}.{name}")
