"""Reads PyTorch's state dicts (.pt) without PyTorch, and without running what the pickle inside asks for.

Both layouts are read: the zip archive of torch 1.6 and later, and the one before it, which the published I3D weights
have (torch/serialization.py `_legacy_load`, `_load`).
"""

import collections
import io
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sptad_jax.errors import UserError
from sptad_jax.files import write_bytes

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8",
            "IntStorage": "<i4"}  # fmt: skip


class Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int  # elements


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # elements


class TensorUnpickler(pickle.Unpickler):
    """Unpickles tensors in plain containers, as places in storages, and refuses every other global."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return np.dtype(STORAGES[name])
        if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise UserError(f"refused to unpickle {module}.{name}: only tensors are admitted")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise UserError("refused to unpickle a storage of an unknown kind")
        return Storage(str(key), dtype, int(size))


def _rebuild_tensor(storage: Storage, offset: int, shape: Any, strides: Any, *_: Any) -> Tensor:
    return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def read_state_dict(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The tensors of a saved state dict by name.

    Raises UserError, naming the file, where it is absent, damaged, holds other things than tensors by name, or would
    run code when PyTorch loads it carelessly.
    """
    try:
        data = path.read_bytes()
        read = _read_zip if zipfile.is_zipfile(io.BytesIO(data)) else _read_legacy
        state, storages = read(data)
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in dict.items(state)
        ):
            raise UserError("holds other things than tensors by name; save the model's state_dict() alone")
        return {name: _to_array(tensor, storages) for name, tensor in dict.items(state)}
    except UserError as error:
        raise UserError(f"{path}: {error}.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path.") from None
    except Exception as error:  # a broken pickle raises nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: damaged, or no PyTorch file ({reason}); fetch it anew.") from error


def _read_zip(data: bytes) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise UserError("was written on a big-endian machine; save it again on another")
        state = TensorUnpickler(io.BytesIO(archive.read(pickled)), encoding="utf-8").load()
        prefix = f"{root}data/"
        return state, {name.removeprefix(prefix): archive.read(name) for name in names if name.startswith(prefix)}


def _read_legacy(data: bytes) -> tuple[Any, dict[str, bytes]]:
    """Five pickles (magic number, version, machine, object, storage keys), then length and bytes of each storage."""
    file = io.BytesIO(data)
    unpicklers = (TensorUnpickler(file, encoding="utf-8") for _ in range(5))
    magic = next(unpicklers).load()
    if magic != LEGACY_MAGIC:
        raise ValueError("the magic number is missing")
    _, machine, state, keys = (unpickler.load() for unpickler in unpicklers)
    if not machine["little_endian"]:
        raise UserError("was written on a big-endian machine; save it again on another")
    sizes = {tensor.storage.key: tensor.storage for tensor in dict.values(state) if isinstance(tensor, Tensor)}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        storages[key] = file.read(count * sizes[key].dtype.itemsize)
    return state, storages


def _to_array(tensor: Tensor, storages: Mapping[str, bytes]) -> np.ndarray:
    storage = np.frombuffer(storages[tensor.storage.key], tensor.storage.dtype)
    numbers = (tensor.offset, *tensor.shape, *tensor.strides)
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    # as_strided would read whatever lies behind the storage
    if min(numbers) < 0 or len(storage) != tensor.storage.size or (0 not in tensor.shape and last >= len(storage)):
        raise ValueError("a tensor leaves its storage")
    steps = [step * storage.itemsize for step in tensor.strides]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, steps).copy()


def write_state_dict(path: pathlib.Path, state: Mapping[str, np.ndarray]) -> None:
    """Writes a state dict with PyTorch, whole or not at all. Raises UserError without PyTorch, OSError if it fails."""
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: writing a PyTorch file needs PyTorch; install the extra `parity`.") from None
    content = io.BytesIO()
    torch.save({name: torch.from_numpy(array.copy()) for name, array in state.items()}, content)
    write_bytes(path, content.getvalue())
