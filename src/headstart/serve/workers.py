"""Threads that decode and predict, fed by a bounded queue; one that hangs on a picture is replaced."""

from __future__ import annotations

import asyncio
import collections
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from headstart.errors import ImageError
from headstart.prediction import Prediction
from headstart.serve.metrics import Metrics
from headstart.serve.models import ServedModel
from headstart.serve.refusals import Refusal
from headstart.serve.settings import ServeSettings

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class _Task:
    """One call for a worker, and the future that waits for it in an event loop."""

    __slots__ = ("args", "function", "future", "queued_s")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...], future: asyncio.Future[Any]) -> None:
        self.function = function
        self.args = args
        self.future = future
        self.queued_s = time.monotonic()

    def finish(self, result: Any, error: BaseException | None) -> None:
        """From any thread; what comes after the first time, or after the request has gone, is dropped."""
        try:
            self.future.get_loop().call_soon_threadsafe(self._settle, result, error)
        except RuntimeError:  # the loop has been closed: the server was stopped without waiting
            logger.debug("a result came after the server had stopped")

    def _settle(self, result: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Worker:
    __slots__ = ("is_stuck", "started_s", "task")

    def __init__(self) -> None:
        self.task: _Task | None = None
        self.started_s = 0.0
        self.is_stuck = False


class WorkerPool:
    """`num_workers` threads that start with the first work; at most `queue_size` pictures wait for them.

    What takes longer than `predict_timeout_s` is answered without waiting for it. Nothing can stop a thread, so
    another takes its place, up to `num_workers` of them; when it comes back it works on, if it is still needed.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._limits = settings.decode_limits
        self._change = threading.Condition()
        self._queue: collections.deque[_Task] = collections.deque()
        self._workers: list[_Worker] = []
        self._is_closed = False
        metrics.watch_queue(lambda: self.num_waiting, lambda: self.num_stuck)

    @property
    def num_waiting(self) -> int:
        """Pictures, or other work, in the queue."""
        return len(self._queue)

    @property
    def num_stuck(self) -> int:
        """Threads that work on what was given up."""
        return sum(worker.is_stuck for worker in self._workers)

    def check_room(self, count: int = 1) -> None:
        """Raise Refusal 503 `overloaded` where `count` pictures would not fit into the queue now."""
        num_free = self._settings.num_workers - sum(
            worker.task is not None and not worker.is_stuck for worker in self._workers
        )
        if self._is_closed or len(self._queue) + count > self._settings.queue_size + num_free:
            reason = "as many pictures are waiting as may; try again"
            raise Refusal(503, "overloaded", reason, {"Retry-After": "1"})

    async def predict(
        self, model: ServedModel, pictures: Sequence[bytes | np.ndarray]
    ) -> list[Prediction | ImageError]:
        """In the order given, a Prediction for each encoded file or uint8 (H, W, 3), or why there is none.

        Raises Refusal 503 `overloaded` at once where they do not fit into the queue, and where one waited in it for
        longer than `predict_timeout_s`.
        """

        def predict_one(index: int, picture: bytes | np.ndarray) -> Prediction | ImageError:
            try:
                return model.classifier.predict_one(picture, f"picture {index}", self._limits)
            except ImageError as error:
                return error

        async def wait(future: asyncio.Future[Prediction | ImageError]) -> Prediction | ImageError:
            try:
                return await future
            except TimeoutError:
                return ImageError("too-slow", f"it takes more than {self._settings.predict_timeout_s:g} s")

        futures = self._submit([(predict_one, item) for item in enumerate(pictures)])
        try:
            outcomes = [await wait(future) for future in futures]
        finally:
            self._drop(futures)  # those left when one was refused, or when the request was given up
        self._metrics.count_pictures(model.name, outcomes)
        return outcomes

    async def call(self, function: Callable[..., Result], *args: object) -> Result:
        """`function(*args)` in a worker. What it raises comes through; Refusal 503 as for `predict`, 422 `too-slow`."""
        (future,) = self._submit([(function, args)])
        try:
            return await future
        except TimeoutError:
            limit_s = self._settings.predict_timeout_s
            raise Refusal(422, "too-slow", f"it takes more than {limit_s:g} s") from None
        finally:
            self._drop([future])

    def _drop(self, futures: Sequence[asyncio.Future[Any]]) -> None:
        """Nobody waits for these any more: those that have not begun leave the queue."""
        for future in futures:
            future.cancel()
        if any(future.cancelled() for future in futures):
            with self._change:
                for task in [task for task in self._queue if task.future.cancelled()]:
                    self._queue.remove(task)

    def _submit(self, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[asyncio.Future[Any]]:
        loop = asyncio.get_running_loop()
        tasks = [_Task(function, args, loop.create_future()) for function, args in calls]
        with self._change:
            self.check_room(len(tasks))
            self._queue.extend(tasks)
            for _ in tasks:
                self._start_worker()
            self._change.notify(len(tasks))
        return [task.future for task in tasks]

    def _start_worker(self) -> None:
        """One more, unless there are as many as there may be; those that are stuck count up to `num_workers`."""
        num_workers = self._settings.num_workers
        if len(self._workers) - self.num_stuck >= num_workers or len(self._workers) >= 2 * num_workers:
            return
        worker = _Worker()
        self._workers.append(worker)
        # As daemon: a thread that hangs on a picture must not keep the process from ending.
        threading.Thread(target=self._work, args=(worker,), name="headstart-worker", daemon=True).start()

    def _work(self, worker: _Worker) -> None:
        while True:
            with self._change:
                worker.task = None
                if worker.is_stuck:  # it was, and has come back
                    worker.is_stuck = False
                    if len(self._workers) - self.num_stuck > self._settings.num_workers:
                        self._workers.remove(worker)
                        return
                while not self._queue and not self._is_closed:
                    self._change.wait()
                if self._is_closed:
                    self._workers.remove(worker)
                    return
                task = self._queue.popleft()
                if task.future.cancelled():
                    continue
                worker.task, worker.started_s = task, time.monotonic()
            try:
                result = task.function(*task.args)
            except BaseException as error:
                task.finish(None, error)
            else:
                task.finish(result, None)
            del task

    async def supervise(self) -> None:
        """Give up what takes too long, until cancelled."""
        while True:
            await asyncio.sleep(min(0.25, self._settings.predict_timeout_s / 4))
            self._give_up_late()

    def _give_up_late(self) -> None:
        limit_s = self._settings.predict_timeout_s
        oldest = time.monotonic() - limit_s
        with self._change:
            for worker in list(self._workers):
                if worker.task is not None and not worker.is_stuck and worker.started_s < oldest:
                    worker.is_stuck = True
                    worker.task.finish(None, TimeoutError())
                    logger.warning("a worker is still busy after %g s and is replaced", limit_s)
                    self._start_worker()
            while self._queue and self._queue[0].queued_s < oldest:
                reason = f"it waited longer than {limit_s:g} s"
                self._queue.popleft().finish(None, Refusal(503, "overloaded", reason, {"Retry-After": "1"}))

    def close(self) -> None:
        """Let the workers end; what waits is not done any more."""
        with self._change:
            self._is_closed = True
            self._queue.clear()
            self._change.notify_all()
