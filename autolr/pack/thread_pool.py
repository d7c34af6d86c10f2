"""Threads that take a CPU's passes side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


class ThreadPool:
    """Workers, each with its share of torch's threads.

    Args:
        workers: how many; one does the work in the caller's own thread.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def work(self, do: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Do every item, and return when all are done; the first error is raised then."""
        if self.workers == 1 or len(items) == 1:
            for item in items:
                do(item)
            return
        if self._pool is None:
            share = max(1, self._threads // self.workers)
            # Torch keeps this number for each thread, but that of its matrix library for the process.
            self._pool = ThreadPoolExecutor(self.workers, "slot", torch.set_num_threads, (share,))
        jobs = [self._pool.submit(do, item) for item in items]
        for job in jobs:
            job.exception()
        for job in jobs:
            job.result()

    def halve(self) -> None:
        """Work with half as many from now on."""
        if self.workers > 1:
            self.close()
            self.workers //= 2

    def close(self) -> None:
        """End the workers, and give torch its threads back."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            torch.set_num_threads(self._threads)
