"""The reader of old PyTorch files: the published file as torch reads it, and crafted, cut and damaged ones."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import random
import struct
import sys
import tracemalloc
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.backbones.catalog import CATALOG
from headstart.backbones.torch_checkpoint import read_checkpoint
from headstart.errors import BackboneError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


class Storage:
    """Stands for a torch storage while a file is written."""

    def __init__(self, key: str, values: np.ndarray) -> None:
        self.key = key
        self.values = values


class Tensor:
    """Stands for a torch tensor; offset, shape and stride are whatever the test wants."""

    def __init__(self, storage: Storage, offset: Any, shape: Any, stride: Any) -> None:
        self.parts = (storage, offset, shape, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.parts


class CheckpointPickler(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        if not isinstance(value, Storage):
            return None
        kind = {"f": "FloatStorage", "i": "LongStorage"}[value.values.dtype.kind]
        return ("storage", getattr(sys.modules["torch"], kind), value.key, "cpu", value.values.size, None)


def write_checkpoint(state: object, *storages: Storage, magic: object = MAGIC, protocol: object = PROTOCOL) -> bytes:
    """A file as torch 1.5 wrote it. Names of torch are there only while this runs."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def rebuild() -> None: ...

    rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = "torch._utils", *["_rebuild_tensor_v2"] * 2
    utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        for part in (magic, protocol, {"little_endian": True}, state, [storage.key for storage in storages]):
            CheckpointPickler(file, protocol=2).dump(part)
    for storage in storages:
        file.write(struct.pack("<q", storage.values.size) + storage.values.tobytes())
    return file.getvalue()


FLOATS = Storage("94", np.arange(24, dtype="<f4"))
LONGS = Storage("7", np.array([5, -6], dtype="<i8"))


def make_small_file() -> bytes:
    state = OrderedDict(
        plain=Tensor(FLOATS, 0, (2, 3), (3, 1)),
        turned=Tensor(FLOATS, 6, (3, 2), (1, 3)),
        count=Tensor(LONGS, 1, (), ()),
    )
    return write_checkpoint(state, FLOATS, LONGS)


@pytest.fixture(scope="module")
def published() -> bytes:
    file = CATALOG["efficientnet-lite0"].find_weights()
    assert file is not None
    return file.read_bytes()


def test_the_published_file_is_read_as_torch_reads_it(published: bytes) -> None:
    """The expected figures are those of torch 2 with torch.load(weights_only=True)."""
    tensors = read_checkpoint(published)
    assert len(tensors) == 296
    assert list(tensors)[:2] == ["_conv_stem.weight", "_bn0.weight"]
    assert list(tensors)[-1] == "_fc.bias"
    stem = tensors["_conv_stem.weight"]  # its strides in the file are (1, 32, 288, 96)
    assert stem.shape == (32, 3, 3, 3)
    assert stem[5, 2, 1, 0] == np.float32(-0.16491231322288513)
    assert stem.sum(dtype=np.float64) == pytest.approx(-26.811376610887237, rel=1e-12)
    digest = hashlib.sha256()
    for name, values in tensors.items():
        digest.update(f"{name} {values.dtype} {list(values.shape)} ".encode() + values.tobytes())
    assert digest.hexdigest() == "fac81b441295a3bb71f1e0916c086cc5965aebe3937a29de2d84100fe035cc08"


def test_offsets_strides_and_types_are_followed() -> None:
    tensors = read_checkpoint(make_small_file())
    assert list(tensors) == ["plain", "turned", "count"]
    np.testing.assert_array_equal(tensors["plain"], np.array([[0, 1, 2], [3, 4, 5]], np.float32))
    np.testing.assert_array_equal(tensors["turned"], np.array([[6, 9], [7, 10], [8, 11]], np.float32))
    assert tensors["count"].dtype == np.int64
    assert tensors["count"].shape == ()
    assert tensors["count"] == -6


class Call:
    """Pickles as a call of `function`, as malicious files do."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "name"), [(os.system, "system"), (eval, "eval"), (getattr, "getattr"), (np.load, "load")]
)
@pytest.mark.parametrize("place", ["magic", "protocol", "state", "nested"])
def test_a_file_that_asks_for_anything_but_tensors_is_refused_and_nothing_runs(
    tmp_path: Path, function: Any, name: str, place: str
) -> None:
    trace = tmp_path / "trace"
    arguments = {"system": f"touch {trace}", "eval": f"open({str(trace)!r}, 'w')"}
    call = Call(function, arguments.get(name, "x"))
    data = {
        "magic": lambda: write_checkpoint({}, magic=call),
        "protocol": lambda: write_checkpoint({}, protocol=call),
        "state": lambda: write_checkpoint(call),
        "nested": lambda: write_checkpoint(OrderedDict(weight=[call])),
    }[place]()
    with pytest.raises(BackboneError, match=rf"asks for .*\.{name}; only tensors"):
        read_checkpoint(data)
    assert not trace.exists()
    if name == "system":  # the same file does run code where it is unpickled without care
        file = io.BytesIO(data)
        while not trace.exists():
            pickle.Unpickler(file).load()


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(FLOATS, 0, (5, 5), (5, 1)),
        Tensor(FLOATS, 1, (24,), (1,)),
        Tensor(FLOATS, -1, (2,), (1,)),
        Tensor(FLOATS, 20, (2, 3), (3, -1)),
        Tensor(FLOATS, 0, (0,), (1,)),
        Tensor(FLOATS, 0, (-3,), (1,)),
        Tensor(FLOATS, 0, (2**31, 2**31), (0, 0)),
        Tensor(FLOATS, 0, (10**30,), (0,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tensor: Tensor) -> None:
    with pytest.raises(BackboneError, match="outside its storage"):
        read_checkpoint(write_checkpoint(OrderedDict(weight=tensor), FLOATS))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no pickle",
        pickle.dumps({"a": 1}, 2),
        write_checkpoint({}, magic=7),
        write_checkpoint({}, protocol=1000),
        write_checkpoint(3),
        write_checkpoint([1, 2]),
        write_checkpoint({"weight": 4}),
        write_checkpoint({"weight": Tensor(FLOATS, 0, (2,), (1,))}),  # its storage is not in the file
        write_checkpoint({"weight": Tensor(FLOATS, 0, (2, 2), (1,))}, FLOATS),
        write_checkpoint({"weight": Tensor(FLOATS, 0, "ab", (1, 1))}, FLOATS),
        write_checkpoint({"weight": Tensor(FLOATS, 0, (1.5,), (1,))}, FLOATS),
        write_checkpoint({"weight": Tensor(FLOATS, None, (2,), (1,))}, FLOATS),
        make_small_file()[: -24 * 4 - 8 * 4] + b"\xff" * 100,  # a storage of 2**64 - 1 elements
    ],
)
def test_what_is_no_state_dict_is_a_backbone_error(data: bytes) -> None:
    with pytest.raises(BackboneError):
        read_checkpoint(data)


def test_a_cut_file_is_a_backbone_error(published: bytes) -> None:
    rng = random.Random(5)
    places = [rng.randrange(40_000) for _ in range(25)] + [rng.randrange(len(published)) for _ in range(25)]
    for place in [*places, len(published) - 1]:
        with pytest.raises(BackboneError):
            read_checkpoint(published[:place])
    small = make_small_file()
    for place in range(len(small)):
        with pytest.raises(BackboneError):
            read_checkpoint(small[:place])


def test_flipped_bits_are_read_or_refused_and_raise_nothing_else(published: bytes) -> None:
    small, num_refused = make_small_file(), 0
    for place in range(0, 8 * len(small), 3):  # of every byte two or three bits
        damaged = bytearray(small)
        damaged[place // 8] ^= 1 << place % 8
        try:
            tensors = read_checkpoint(bytes(damaged))
            assert all(isinstance(values, np.ndarray) for values in tensors.values())
        except BackboneError:
            num_refused += 1
    assert num_refused > 200
    rng = random.Random(6)
    for _ in range(50):
        damaged = bytearray(published)
        damaged[rng.randrange(40_000)] ^= rng.randrange(1, 256)
        try:
            read_checkpoint(bytes(damaged))
        except BackboneError:
            num_refused += 1


def test_a_small_file_cannot_claim_much_memory() -> None:
    """LONG_BINPUT 2**24: the unpickler in C makes room for twice as many entries of its memo."""
    data = write_checkpoint({}, magic=MAGIC).replace(b"\x80\x02}q\x00X", b"\x80\x02}r\x00\x00\x00\x01X")
    assert b"}r\x00\x00\x00\x01" in data
    tracemalloc.start()
    try:
        assert read_checkpoint(data) == {}
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
