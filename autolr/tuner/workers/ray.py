"""Workers as actors of a Ray cluster: one pack each, on a GPU that Ray assigns."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from autolr.errors import AutoLRError
from autolr.rundir.folder import STORAGE
from autolr.tuner.workers.local import VISIBLE, Ended, Order

# Environment variables that an actor gets from here.
PASSED = (STORAGE, "PYTHONPATH", "HF_HUB_OFFLINE", "AUTOLR_CACHE")


@dataclass
class RayFleet:
    """One actor per GPU of the cluster, or as many as the order has devices.

    Args:
        order: of the workers. Only the number of its devices counts, Ray assigns them; none: as many workers as the
            cluster has GPUs, or cores if it has no GPU.
        join: works on a search; called with the order and the device.
        address: of the cluster; None: this machine's, or a new one on it.

    Raises:
        AutoLRError: Ray is not installed, the cluster does not answer, or it has too few GPUs.
    """

    order: Order
    join: Callable[[Order, str | None], None]
    address: str | None = None
    _actors: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            import ray
        except ImportError:
            raise AutoLRError("--workers ray: needs ray, which is not installed: pip install ray") from None
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address=self.address, log_to_driver=False, include_dashboard=False, logging_level="error")
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise AutoLRError(f"--ray-address {self.address}: no cluster answers there: {reason}") from None
        there = ray.cluster_resources()
        self._takes = {"num_gpus": 1} if there.get("GPU") else {"num_cpus": 1}
        most = int(there.get("GPU") or there.get("CPU", 1))
        wanted = len(self.order.devices)
        if wanted > most:
            kind = "GPUs" if "num_gpus" in self._takes else "cores"
            raise AutoLRError(
                f"--workers ray:{wanted}: the cluster has {most} {kind}, one for each worker. Ask for fewer."
            )
        self.size = wanted or most

    def start(self, number: int) -> None:
        """Start an actor on a node that Ray chooses."""
        variables = {name: os.environ[name] for name in PASSED if name in os.environ}
        actor = self._ray.remote(_Worker).options(**self._takes, runtime_env={"env_vars": variables}).remote()
        self._actors[number] = actor, actor.work.remote(self.join, self.order, "num_gpus" in self._takes)

    def ended(self, number: int) -> Ended | None:
        """Return how an actor has ended; None: it is running."""
        actor, answer = self._actors[number]
        ready, _ = self._ray.wait([answer], timeout=0)
        if not ready:
            return None
        try:
            fault = self._ray.get(answer)
        except self._ray.exceptions.RayActorError:
            return Ended(False, None, "its actor was lost")
        except self._ray.exceptions.RayTaskError as error:
            self._ray.kill(actor)
            return Ended(False, None, str(error.cause or error).splitlines()[-1])
        self._ray.kill(actor)
        return Ended(fault is None, fault)

    def stop(self) -> None:
        """End all actors."""
        for actor, _ in self._actors.values():
            self._ray.kill(actor)
        if self._ours:
            self._ray.shutdown()


class _Worker:
    """An actor; its process sees only the GPU that Ray assigned."""

    def work(self, join: Callable[[Order, str | None], None], order: Order, on_gpu: bool) -> str | None:
        """Work on a search; return the message of an error in the input, if there is one."""
        if on_gpu:
            import ray

            # Ray sets it already, unless it is configured not to (RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES).
            os.environ[VISIBLE] = ",".join(str(number) for number in ray.get_gpu_ids())
        try:
            join(order, "cuda:0" if on_gpu else "cpu")
        except AutoLRError as error:
            return str(error)
        return None
