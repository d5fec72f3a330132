"""`eggroll.train` where the user has started JAX over several processes: process 0 alone has the run folder."""

from __future__ import annotations

import functools
from typing import Any

from eggroll.runs import training


@functools.wraps(training.train)
def train(*args: Any, **settings: Any) -> Any:
    """See `runs.training.train`, which this is where the process is alone."""
    import jax

    if not jax.distributed.is_initialized():
        return training.train(*args, **settings)
    from eggroll.distributed.hosts import joined

    team = joined()
    if team is None:
        return training.train(*args, **settings)
    with team:
        return training.train(*args, **settings, peers=team)
