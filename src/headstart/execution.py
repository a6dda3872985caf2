"""ONNX Runtime's sessions: on the processor, or on a device with the rest of the work in threads.

HEADSTART_DEVICE names the device; `auto`, the default, takes CUDA or DirectML where the installed ONNX Runtime has
them, else the processor. What is not taken by itself: TensorRT builds for minutes; OpenVINO is no faster on a
processor with pictures of many sizes; CoreML is in every ONNX Runtime for macOS, and was not measured. A device that
does not start, or whose results are not those of the processor, is left with one warning.

A graph takes pictures of any size, which compiled devices take badly. So it is cut where the picture has become the
network's input: the part before stays on the processor, in the threads that decode; the part after has fixed shapes and
runs on the device, several pictures at a time, always padded to the same number so that the same picture gives the same
values in any company. On a processor batches are slower, and nothing is cut.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime

from headstart._files import get_cache_folder
from headstart.errors import ConfigError, HeadstartError, suggest
from headstart.parallel import count_cpus

logger = logging.getLogger(__name__)

_IMAGE = "image"
_SILENT = 4
_ORT_DEFAULT_SEVERITY = 2


@dataclass(frozen=True)
class Device:
    """An execution provider of ONNX Runtime with what it is told, and how many pictures it takes at a time."""

    name: str
    provider: str
    options: Mapping[str, str] = field(default_factory=dict)
    batch_size: int = 16


PROCESSOR = Device("cpu", "CPUExecutionProvider", batch_size=1)


def _list_all() -> dict[str, Device]:
    """In the order of preference. All are told to compute in single precision where they can be."""
    threads = str(count_cpus())
    openvino = {"device_type": "CPU", "precision": "FP32", "num_of_threads": threads, "num_streams": threads}
    engines = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(get_cache_folder() / "tensorrt")}
    devices = (
        Device("cuda", "CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}),
        Device("directml", "DmlExecutionProvider"),
        Device("tensorrt", "TensorrtExecutionProvider", engines),
        Device("openvino", "OpenVINOExecutionProvider", openvino, batch_size=1),
        Device("openvino-gpu", "OpenVINOExecutionProvider", {"device_type": "GPU", "precision": "FP32"}),
        Device(
            "coreml",
            "CoreMLExecutionProvider",
            {"ModelFormat": "MLProgram", "MLComputeUnits": "CPUAndGPU", "RequireStaticInputShapes": "1"},
        ),
        Device("cpu-batches", PROCESSOR.provider),  # slower than cpu; to try the way that devices go without one
        PROCESSOR,
    )
    return {device.name: device for device in devices}


_AUTOMATIC = ("cuda", "directml")


def list_devices() -> list[str]:
    """Names for HEADSTART_DEVICE that the installed ONNX Runtime was built for; not all of them need start."""
    available = onnxruntime.get_available_providers()
    return [name for name, device in _list_all().items() if device.provider in available]


def choose_device() -> Device:
    """The one that HEADSTART_DEVICE names; for `auto` the first that ONNX Runtime was built for and that is automatic.

    Raises ConfigError for a name that is none.
    """
    devices, here = _list_all(), list_devices()
    name = os.environ.get("HEADSTART_DEVICE") or "auto"
    if name == "auto":
        name = next((each for each in _AUTOMATIC if each in here), PROCESSOR.name)
    if name not in devices:
        raise ConfigError(
            f"HEADSTART_DEVICE is {name!r}.{suggest(name, devices)} Expected auto or one of {', '.join(devices)}."
        )
    return devices[name]


def open_session(data: bytes, num_threads: int = 1) -> onnxruntime.InferenceSession:
    """A session on the processor that prints nothing and uses `num_threads` for one run."""
    return onnxruntime.InferenceSession(data, _make_options(num_threads), providers=[PROCESSOR.provider])


def _make_options(num_threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    return options


class Runner:
    """A graph from `image`, uint8 (H, W, 3) of any size, on the processor. `run` may be called from many threads."""

    device_name = PROCESSOR.name

    def __init__(self, data: bytes) -> None:
        self._session = open_session(data)

    @property
    def num_threads(self) -> int:
        """How many threads should call `run` to keep all busy."""
        return count_cpus()

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The graph's outputs for one picture."""
        return list(self._session.run(None, {_IMAGE: pixels}))


class DeviceRunner(Runner):
    """The same on a device. Raises RuntimeError with the reason where the device cannot be used for this graph."""

    def __init__(self, data: bytes, input_size_px: int, device: Device) -> None:
        self.device_name = device.name
        from headstart.fixed_shapes import compare_outputs, draw_probe, split_graph

        before, after, self._shapes = split_graph(data, input_size_px)
        self._prepare = open_session(before)
        probes = [draw_probe(seed) for seed in range(2)]
        whole = open_session(data)
        expected = [whole.run(None, {_IMAGE: probe}) for probe in probes]
        # Not every graph takes several pictures: attention with a class token, for one, is exported for a single one.
        sizes = sorted({device.batch_size, 1}, reverse=True)
        for batch_size in sizes:
            try:
                self._start(after, device, batch_size)
                found = self._run_batch([self._prepare_one(probe) for probe in probes[:batch_size]])
                compare_outputs(found, expected)
                return
            except Exception as error:  # ONNX Runtime's own classes share no base
                if batch_size == sizes[-1]:
                    raise RuntimeError(_shorten(error)) from error

    def _start(self, after: bytes, device: Device, batch_size: int) -> None:
        from headstart.fixed_shapes import widen_graph

        self._batch_size = batch_size
        self._session = _open_on(widen_graph(after, batch_size), device)
        self._input = self._session.get_inputs()[0].name
        # Only OpenVINO on the processor has a stream for each of our threads; DirectML forbids runs side by side.
        self._num_free = count_cpus() if device.name == "openvino" else 1
        self._changed = threading.Condition()
        self._waiting: list[tuple[np.ndarray, Future[list[np.ndarray]]]] = []

    @property
    def num_threads(self) -> int:
        """While one batch is on the device and one waits, the processors prepare the next."""
        return count_cpus() + 2 * self._batch_size

    def run(self, pixels: np.ndarray) -> list[np.ndarray]:
        """The graph's outputs for one picture; those of other threads that wait at the time go with it.

        Raises HeadstartError when the device fails. Nothing is computed elsewhere then, for the values would be mixed.
        """
        future: Future[list[np.ndarray]] = Future()
        item = self._prepare_one(pixels), future
        with self._changed:
            self._waiting.append(item)
        while not future.done():
            with self._changed:
                self._changed.wait_for(lambda: future.done() or (self._waiting and self._num_free))
                if future.done():
                    break
                batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
                self._num_free -= 1
            self._answer(batch)
            with self._changed:
                self._num_free += 1
                self._changed.notify_all()
        return future.result()

    def _prepare_one(self, pixels: np.ndarray) -> np.ndarray:
        return np.asarray(self._prepare.run(None, {_IMAGE: pixels})[0])

    def _answer(self, batch: Sequence[tuple[np.ndarray, Future[list[np.ndarray]]]]) -> None:
        try:
            for (_, future), outputs in zip(batch, self._run_batch([row for row, _ in batch]), strict=True):
                future.set_result(outputs)
        except Exception as error:
            failure = HeadstartError(
                f"The device {self.device_name} failed: {_shorten(error)}. "
                "Try again, or set HEADSTART_DEVICE=cpu to use the processor."
            )
            for _, future in batch:
                if not future.done():
                    future.set_exception(failure)

    def _run_batch(self, rows: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        inputs = np.zeros((self._batch_size, *rows[0].shape[1:]), np.float32)
        inputs[: len(rows)] = np.concatenate(rows)
        outputs = self._session.run(None, {self._input: inputs})
        parted = [
            np.reshape(values, (self._batch_size, *shape)) for values, shape in zip(outputs, self._shapes, strict=True)
        ]
        return [[values[index] for values in parted] for index in range(len(rows))]


def open_device(data: bytes, input_size_px: int) -> DeviceRunner | None:
    """The graph on the device that was chosen; None for the processor, with one warning where the device fails.

    Raises ConfigError for a wrong HEADSTART_DEVICE.
    """
    device = choose_device()
    if device.name == PROCESSOR.name:
        return None
    try:
        return DeviceRunner(data, input_size_px, device)
    except RuntimeError as error:
        _warn(device.name, str(error))
        return None


@functools.cache
def _warn(name: str, reason: str) -> None:
    """Once for each reason."""
    logger.warning(
        "The device %s cannot be used: %s. The processor is used instead; HEADSTART_DEVICE=cpu silences this.",
        name,
        reason.rstrip("."),
    )


def _open_on(data: bytes, device: Device) -> onnxruntime.InferenceSession:
    """Raises RuntimeError where ONNX Runtime would, or would without a word use the processor instead."""
    if device.provider not in onnxruntime.get_available_providers():
        raise RuntimeError(f"this ONNX Runtime was not built for it, only for {', '.join(list_devices())}")
    options = _make_options(count_cpus())
    options.use_deterministic_compute = True
    options.enable_mem_pattern = device.name != "directml"  # which does not support it
    with _silence():
        if device.name in ("cuda", "tensorrt") and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # NVIDIA's libraries as pip installs them
        providers = dict.fromkeys((device.provider, PROCESSOR.provider))
        try:
            session = onnxruntime.InferenceSession(
                data,
                options,
                providers=[*providers],
                provider_options=[dict(device.options), {}][: len(providers)],
                enable_fallback=0,
            )
        except Exception as error:
            raise RuntimeError(_find_missing_library(device) or _shorten(error)) from error
    if session.get_providers()[0] != device.provider:
        raise RuntimeError(_find_missing_library(device) or "ONNX Runtime found no such device, or not its driver")
    return session


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """ONNX Runtime's lines on stderr and stdout about a provider that does not start; we say it in one."""
    onnxruntime.set_default_logger_severity(_SILENT)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(_ORT_DEFAULT_SEVERITY)


def _find_missing_library(device: Device) -> str | None:
    """A provider's library that cannot be loaded names the one that it misses."""
    stem = device.provider.removesuffix("ExecutionProvider").lower()
    for library in Path(onnxruntime.__file__).parent.glob(f"capi/*onnxruntime_providers_{stem}.*"):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return str(error)
    return None


def _shorten(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300].rstrip(".")
