"""Threads that decode and predict, fed by a bounded queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from headstart.errors import ImageError
from headstart.prediction import Prediction
from headstart.serve.models import ServedModel
from headstart.serve.refusals import Refusal
from headstart.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class WorkerPool:
    """`num_workers` threads; at most `queue_size` pictures wait for them."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._limits = settings.decode_limits
        self._executor = ThreadPoolExecutor(settings.num_workers)
        self._num_waiting = 0

    @property
    def num_waiting(self) -> int:
        """Pictures in the queue."""
        return self._num_waiting

    async def predict(
        self, model: ServedModel, pictures: Sequence[bytes | np.ndarray]
    ) -> list[Prediction | ImageError]:
        """In the order given, a Prediction for each encoded file or uint8 (H, W, 3), or why there is none.

        Raises Refusal 503 `overloaded` at once where they do not fit into the queue.
        """

        def predict_one(index: int, picture: bytes | np.ndarray) -> Prediction | ImageError:
            try:
                return model.classifier.predict_one(picture, f"picture {index}", self._limits)
            except ImageError as error:
                return error

        return await asyncio.gather(*(self.call(predict_one, *item) for item in enumerate(pictures)))

    async def call(self, function: Callable[..., Result], *args: object) -> Result:
        """`function(*args)` in a worker. What it raises comes through; Refusal 503 as for `predict`."""
        if self._num_waiting >= self._settings.queue_size + self._settings.num_workers:
            raise Refusal(503, "overloaded", "too many pictures are waiting; try again", {"Retry-After": "1"})
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
