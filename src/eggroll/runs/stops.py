"""Why a run cannot go on that has begun: no memory, or no fitness; each is one line with a mend."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from eggroll.core.errors import is_out_of_memory
from eggroll.runs.folder import RunError, reason
from eggroll.runs.job import Evaluated


@contextmanager
def memory_of(config: Mapping[str, Any]) -> Iterator[None]:
    """Turn what JAX or the system says of memory into one line that names the settings.

    Args:
      config: of the job, with `population_size` and `chunk_size` where it has these.
    Raises:
      RunError: memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sizes = [f"{name} {config[name]}" for name in ("chunk_size", "population_size") if config.get(name)]
        what, said = " and ".join(sizes) or "a generation", reason(error).rstrip(".")
        raise RunError(
            f"expected memory for {what}, got {said}; lower chunk_size (--chunk-size, members at a time), or "
            "population_size (--population-size)"
        ) from error


def check_fitness(evaluated: Evaluated, generation: int) -> None:
    """Refuse a generation from which nothing can be learned.

    Raises:
      RunError: no member has a finite fitness, and all were evaluated.
    """
    mean = evaluated.metrics.get("fitness_mean")
    if not isinstance(mean, float) or not math.isnan(mean) or evaluated.lost:
        return
    mend = (
        "call fitness for one member to see why"
        if generation == 0
        else "see when it began, lower sigma or the learning rate"
    )
    raise RunError(
        f"expected a finite fitness of some member, got NaN or infinity of all in generation {generation}; {mend}"
    )
