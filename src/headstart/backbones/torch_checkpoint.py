"""Read the tensors of an old-format PyTorch checkpoint (before the ZIP format of torch 1.6) without torch.

Such a file is five pickles (magic number, protocol, machine, state dict, storage keys) and then, for each storage, its
number of elements as int64 and the elements. The unpickler admits the four names that a dictionary of tensors needs and
refuses every other, so no code of the file's choosing runs; callers check the file's SHA-256 before it comes here.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.errors import BackboneError

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


@dataclass(frozen=True)
class _StoredTensor:
    storage_key: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(storage_key: str, offset: int, shape: Any, stride: Any, *_: Any) -> _StoredTensor:
    return _StoredTensor(storage_key, offset, tuple(shape), tuple(stride))


class _TensorUnpickler(pickle._Unpickler):
    """Builds dictionaries of tensor descriptions; `dtypes` collects what each storage holds.

    It is Python's unpickler in Python: the one in C takes 23 GB for a file of 500 bytes with one bit flipped.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.dtypes: dict[str, np.dtype[Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        raise BackboneError(f"The checkpoint asks for {module}.{name}; only tensors are read from it.")

    def persistent_load(self, pid: Any) -> str:
        _, dtype, key, *_ = pid
        self.dtypes[key] = dtype
        return str(key)


def read_checkpoint(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, in the file's order. Raises BackboneError when it is not such a file."""
    file = io.BytesIO(data)

    def read_pickle() -> tuple[Any, dict[str, np.dtype[Any]]]:
        unpickler = _TensorUnpickler(file)
        return unpickler.load(), unpickler.dtypes

    try:
        if read_pickle()[0] != _MAGIC or read_pickle()[0] != _PROTOCOL:
            raise BackboneError("Not a PyTorch checkpoint of the old format (its magic number is missing).")
        read_pickle()
        state, dtypes = read_pickle()
        storages = {}
        for key in read_pickle()[0]:
            count = int.from_bytes(file.read(8), "little")
            storages[key] = np.frombuffer(file.read(count * dtypes[key].itemsize), dtype=dtypes[key], count=count)
        return {name: _gather_tensor(storages, tensor) for name, tensor in state.items()}
    except BackboneError:
        raise
    except Exception as error:  # damaged pickles raise nearly everything, MemoryError among it
        raise BackboneError(f"The checkpoint is damaged or not one: {error!r}") from error


def _gather_tensor(storages: dict[str, np.ndarray], tensor: _StoredTensor) -> np.ndarray:
    storage = storages[tensor.storage_key]
    last = tensor.offset + sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride, strict=True))
    outside = min((*tensor.shape, 1)) < 1 or min((*tensor.stride, tensor.offset, 0)) < 0 or last >= storage.size
    # A stride of 0 repeats an element: a small file could claim any amount of memory.
    if outside or math.prod(tensor.shape) > storage.size:
        raise BackboneError("The checkpoint holds a tensor that reaches outside its storage.")
    strides = [step * storage.itemsize for step in tensor.stride]
    return np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides).copy(order="C")
