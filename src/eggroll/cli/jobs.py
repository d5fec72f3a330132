"""Which module makes a job's learner, and what it has to say of its runs in a report."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eggroll.core.errors import UsageError

LEARNERS = {
    "pretrain": "eggroll.pretrain.job",
    "rl": "eggroll.rl.job",
    "marl": "eggroll.rl.job",
    "finetune": "eggroll.llm.job",
    "distill": "eggroll.llm.distill",
    "vllm": "eggroll.vllm.job",
    "trade-pretrain": "eggroll.trading.pretrain",
    "trade-execute": "eggroll.trading.execute",
}
"""Job → module whose `learner_of` makes its learner of a journal's header, and `worker_job` the job for a worker."""


COMPARISONS = {
    "rl": "eggroll.rl.comparison",
    "marl": "eggroll.rl.comparison",
    "finetune": "eggroll.llm.comparison",
    "distill": "eggroll.llm.distilled",
    "trade-execute": "eggroll.trading.comparison",
    "trade-pretrain": "eggroll.trading.comparison",
}
"""Job → module whose `compared` makes of all runs of a report what it has to say of those of this job."""


def extras_of(runs: Sequence[Any]) -> list[Any]:
    """What the applications add to a report of these runs."""
    jobs = [run.config.get("job") for run in runs]
    modules = dict.fromkeys(COMPARISONS[job] for job in jobs if isinstance(job, str) and job in COMPARISONS)
    return [importlib.import_module(name).compared(runs) for name in modules]


def learner_for(header: dict[str, Any], base: Path | None) -> Any:
    """The learner of a journal.

    Raises:
      UsageError: no job of this name is known.
    """
    from eggroll.runs.folder import shown

    job = header.get("job")
    if not isinstance(job, str) or job not in LEARNERS:
        raise UsageError(
            f"expected a journal of {', '.join(LEARNERS)}, got one of {shown(job)}; the journal of a strategy of "
            "your own is replayed with eggroll.replay(…) in Python"
        )
    return importlib.import_module(LEARNERS[job]).learner_of(header, base)


def built_for(welcome: dict[str, Any]) -> Any:
    """A run's job, for a worker.

    Raises:
      UsageError: no job of this name is known.
    """
    from eggroll.runs.folder import shown

    job = welcome["header"].get("job")
    if not isinstance(job, str) or job not in LEARNERS:
        raise UsageError(f"expected a run of {', '.join(LEARNERS)}, got one of {shown(job)}; use the run's version")
    return importlib.import_module(LEARNERS[job]).worker_job(welcome)
