"""Where engines stand: one in this process, or several in actors of Ray."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from eggroll.core.errors import UsageError
from eggroll.distributed.ray_fleet import LOCAL, Placement, started_ray
from eggroll.runs.folder import reason
from eggroll.vllm.engine import Engine, EngineError, EngineSettings
from eggroll.vllm.leaves import Part

_START_SECONDS = 1800.0


class Here:
    """An engine in this process; what is asked of it is done when its result is."""

    def __init__(self, settings: EngineSettings) -> None:
        self._engine = Engine(settings)
        self.parts = self._engine.parts

    def begin(self, method: str, *arguments: Any) -> Any:
        """As `crew.Hand`."""
        return method, arguments

    def result(self, promise: Any) -> Any:
        """As `crew.Hand`."""
        method, arguments = promise
        return getattr(self._engine, method)(*arguments)

    def first_of(self, promises: Sequence[Any]) -> int:
        """The first: all are kept when asked for."""
        return 0

    def revive(self) -> None:
        """An engine that has failed in this process cannot be started twice.

        Raises:
          EngineError: always.
        """
        raise EngineError("expected the engine to go on, got a failure in this process; go on with --resume")


class Actor:
    """What runs in an actor's process: an engine, whose methods are called by name."""

    def __init__(self, settings: EngineSettings, core: int | None) -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
            os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        self._engine = Engine(settings)

    def process_id(self) -> int:
        """Of this process."""
        return os.getpid()

    def call(self, method: str, *arguments: Any) -> Any:
        """A method of `Engine`."""
        return getattr(self._engine, method)(*arguments)


class There:
    """An engine in an actor.

    Args:
      start: makes the actor.
    """

    def __init__(self, ray: Any, start: Callable[[], Any]) -> None:
        self._ray, self._start = ray, start
        self._actor = start()

    @property
    def parts(self) -> list[list[Part]]:
        """What each rank holds; waits until the engine stands."""
        found: list[list[Part]] = self._get(self._actor.call.remote("parts_held"), _START_SECONDS)
        return found

    @property
    def process_id(self) -> int:
        """For whoever wants to see it die."""
        return int(self._get(self._actor.process_id.remote(), _START_SECONDS))

    def begin(self, method: str, *arguments: Any) -> Any:
        """As `crew.Hand`."""
        return self._actor.call.remote(method, *arguments)

    def result(self, promise: Any) -> Any:
        """As `crew.Hand`."""
        return self._get(promise, None)

    def _get(self, promise: Any, seconds: float | None) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(promise, timeout=seconds)
        except errors.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            if isinstance(cause, UsageError) and not isinstance(cause, EngineError):
                raise cause from None  # such as settings that vLLM refuses: another engine would too
            raise EngineError(reason(cause)) from None
        except errors.RayError as error:
            raise EngineError(reason(error)) from None

    def first_of(self, promises: Sequence[Any]) -> int:
        """As `crew.Hand`."""
        ready, _ = self._ray.wait(list(promises), num_returns=1)
        return list(promises).index(ready[0])

    def revive(self) -> None:
        """A new actor in its place."""
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor)
        self._actor = self._start()


@contextmanager
def ray_hands(settings: EngineSettings, placement: Placement) -> Iterator[list[There]]:
    """Engines in actors of Ray, each with the devices of its ranks on one machine.

    Args:
      placement: `cpus` and `gpus` are those of a rank.
    Raises:
      UsageError: Ray is not installed, cannot be reached, or has no room.
    """
    ranks = settings.tensor_parallel
    bundle = {"CPU": placement.cpus * ranks} | ({"GPU": placement.gpus * ranks} if placement.gpus else {})
    whole = placement._replace(cpus=bundle["CPU"], gpus=bundle.get("GPU", 0))
    with started_ray(whole) as ray:
        group = ray.util.placement_group([bundle] * placement.workers, strategy="PACK")
        if not group.wait(60):
            raise UsageError(
                f"expected room for {placement.workers} engines of {bundle} in Ray, got none in 60 seconds; lower "
                "--workers or --tensor-parallel, or add machines"
            )
        own = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        kind = ray.remote(Actor)
        cores = sorted(os.sched_getaffinity(0)) if placement.address == LOCAL and not placement.gpus else []

        def starting(number: int) -> Callable[[], Any]:
            core = cores[number] if ranks == 1 and placement.workers <= len(cores) else None
            strategy = own(placement_group=group, placement_group_bundle_index=number)
            options = {"num_cpus": bundle["CPU"], "num_gpus": bundle.get("GPU", 0), "scheduling_strategy": strategy}
            return lambda: kind.options(**options, max_restarts=0).remote(settings, core)

        hands = [There(ray, starting(number)) for number in range(placement.workers)]
        try:
            yield hands
        finally:
            with contextlib.suppress(Exception):
                ray.util.remove_placement_group(group)
