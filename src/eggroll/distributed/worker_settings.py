"""Settings of `eggroll worker`."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from eggroll.core.errors import UsageError


@dataclass(frozen=True)
class WorkerConfig:
    """Evaluate members for a run that waits with --listen; the secret is in the environment variable EGGROLL_TOKEN."""

    address: tyro.conf.Positional[str]
    """HOST:PORT of the run."""
    patience: float = 60.0
    """Seconds to try to reach the run, at the start and whenever it is lost."""

    def __post_init__(self) -> None:
        if not 0 <= self.patience < 1e9:
            raise UsageError(f"expected --patience of at least 0 seconds, got {self.patience}; the default is 60")
