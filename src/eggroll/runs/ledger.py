"""What a run writes down as it goes: the journal, metrics, samples, snapshots and the summary, in its folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import numpy as np

from eggroll.runs import snapshots
from eggroll.runs.folder import RunError, RunFolder, shown
from eggroll.runs.frames import decode_weights, encode_weights
from eggroll.runs.job import Job, RunState
from eggroll.runs.journal import Journal, Record
from eggroll.runs.metrics import MetricsFile
from eggroll.runs.samples import append_sample
from eggroll.runs.trees import as_arrays, check_start, filled


@runtime_checkable
class Ledger(Protocol):
    """What the loop writes to and reads from. Of several processes only process 0 has a folder behind it."""

    @property
    def generations(self) -> int:
        """How many generations have their weights in it."""
        ...

    @property
    def next_generation(self) -> int:
        """The first generation without a line of metrics; a resumed run goes through some again that have one."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """Entries of the summary."""
        ...

    def standing(self) -> tuple[int, RunState]:
        """Generation and state to go on from."""
        ...

    def record(self, generation: int) -> Record:
        """What was written down of a generation."""
        ...

    def append(self, weights: np.ndarray, lost: tuple[int, ...], shared: bytes | None) -> np.ndarray:
        """Have the next generation on the disk; returns the decoded weights, with which to update."""
        ...

    def decoded(self, weights: np.ndarray, generation: int) -> np.ndarray:
        """These weights as the frame of that generation would hold them."""
        ...

    def note(self, line: dict[str, Any]) -> None:
        """A generation's line of metrics."""
        ...

    def sample(self, generation: int, text: str) -> None:
        """What the model wrote."""
        ...

    def save(self, generation: int, state: RunState, keep: int) -> None:
        """Have the state on the disk."""
        ...

    def finish(self, summary: dict[str, Any]) -> None:
        """The last thing to write."""
        ...

    def check_change(self, new: Job[Any], header: dict[str, Any]) -> None:
        """Refuse another start, or an end before the run's own."""
        ...

    def change(self, new: Job[Any], header: dict[str, Any]) -> None:
        """Settings that hold from here on."""
        ...

    def close(self) -> None:
        """Let everything go."""
        ...


class FolderLedger:
    """A run's folder, locked as long as this is open.

    Args:
      say: takes lines for a person: a torn tail that was cut, a snapshot that was passed over.
    Raises:
      RunError: the folder is in use, cannot be written, or holds another run than this job's.
    """

    def __init__(
        self, job: Job[Any], folder: RunFolder, environment: dict[str, Any], *, say: Callable[[str], None]
    ) -> None:
        self.job, self.folder, self.say = job, folder, say
        with ExitStack() as stack:
            stack.enter_context(folder.locked())
            self.journal = stack.enter_context(self._journal(environment))
            self._settle_config()
            snapshots.tidy(folder)
            self.metrics = MetricsFile.open(folder.path / "metrics.jsonl", self.journal.generations)
            stack.callback(self.metrics.close)
            self._open = stack.pop_all()

    def _journal(self, environment: dict[str, Any]) -> Journal:
        path, header = self.folder.journal, self.job.header(environment)
        if not path.exists():
            return Journal.create(path, header)
        journal = Journal.open(path, writable=True)
        try:
            _check_header(journal, header)
            check_generations(journal, self.job.generations)
        except BaseException:
            journal.close()
            raise
        if not self.job.learner.is_integer and journal.header.get("environment") != environment:
            self.say("another device or version than this run had: floats go on the same to rounding only")
        if journal.torn:
            self.say(f"{path}: cut {journal.torn:,} bytes of a torn tail after {journal.generations:,} generations")
        return journal

    def _settle_config(self) -> None:
        """A kill after a header of changed settings, before their `config.json`, leaves the old one there."""
        recorded = self.journal.header.get("config")
        try:
            same = self.folder.read_json("config.json") == recorded
        except RunError:
            same = False
        if not same and isinstance(recorded, dict):
            self.folder.write_json("config.json", recorded)

    def standing(self) -> tuple[int, RunState]:
        """Generation and state of the newest whole snapshot that the journal reaches; else the start."""
        start = self.job.start()
        for generation in reversed(snapshots.generations(self.folder)):
            if generation > self.journal.generations:
                aside = snapshots.set_aside(self.folder, generation)  # these generations may come out otherwise
                self.say(f"the journal does not reach the snapshot of generation {generation}, which is now {aside}")
                continue
            try:
                tree = snapshots.load(self.folder, generation)[1]
            except RunError as error:
                self.say(f"passed over the snapshot of generation {generation}: {error}")
                continue
            what = f"the snapshot of generation {generation} in {self.folder.path}"
            return generation, filled(start, as_arrays(tree), what)
        return 0, start

    @property
    def generations(self) -> int:
        """How many generations the journal has."""
        return self.journal.generations

    @property
    def next_generation(self) -> int:
        """The first generation without a line of metrics."""
        return self.metrics.next_generation

    @property
    def facts(self) -> dict[str, Any]:
        """Size and place."""
        return {"journal_bytes": self.journal.size, "run_dir": str(self.folder.path)}

    def record(self, generation: int) -> Record:
        """From the journal."""
        return self.journal.record(generation)

    def append(self, weights: np.ndarray, lost: tuple[int, ...], shared: bytes | None) -> np.ndarray:
        """To the journal."""
        return self.journal.append(weights, lost, shared)

    def decoded(self, weights: np.ndarray, generation: int) -> np.ndarray:
        """As the journal's frame of that generation would hold them."""
        segment = self.journal.segment_of(generation)
        return decode_weights(segment.kind, encode_weights(segment.kind, weights), segment.weights)

    def note(self, line: dict[str, Any]) -> None:
        """To `metrics.jsonl`."""
        self.metrics.append(line)

    def sample(self, generation: int, text: str) -> None:
        """To `samples.jsonl`."""
        append_sample(self.folder, generation, text)

    def save(self, generation: int, state: RunState, keep: int) -> None:
        """As a snapshot."""
        self.metrics.sync()
        snapshots.save(self.folder, generation, state._asdict(), keep=keep)

    def finish(self, summary: dict[str, Any]) -> None:
        """To `summary.json`."""
        self.folder.write_json("summary.json", summary)

    def check_change(self, new: Job[Any], header: dict[str, Any]) -> None:
        """Refuse another start, or an end before the journal's."""
        check_start(self.journal.segments[0].header.get("start_sha256"), header["start_sha256"], "the run")
        check_generations(self.journal, new.generations)

    def change(self, new: Job[Any], header: dict[str, Any]) -> None:
        """A header in the journal, then `config.json`."""
        self.journal.append_header(header)
        self.folder.write_json("config.json", new.config)

    def close(self) -> None:
        """Let the folder go."""
        self._open.close()


def check_generations(journal: Journal, generations: int) -> None:
    """Refuse to end before the journal does.

    Raises:
      RunError: it has more generations than these.
    """
    if journal.generations > generations:
        raise RunError(
            f"expected at least the {journal.generations} generations that the run has, got {generations}; "
            "to go back, use eggroll replay --to"
        )


def _comparable(header: dict[str, Any]) -> dict[str, Any]:
    """What must be the same to go on: settings of the strategy one by one."""
    strategy = header.get("strategy")
    parts = {key: header.get(key) for key in ("format", "job", "frames", "weights", "optimizer_state")}
    return parts | (strategy if isinstance(strategy, dict) else {"strategy": strategy})


def _check_header(journal: Journal, header: dict[str, Any]) -> None:
    """The journal is this job's: what frames look like and what they update."""
    written, own = _comparable(journal.header), _comparable(header)
    for key in [*own, *written]:
        if written.get(key) != own.get(key):
            raise RunError(
                f"expected a journal with {key[:80]!r} {shown(own.get(key))}, got {shown(written.get(key))} in "
                f"{journal.path}; use the settings that made it"
            )
    check_start(journal.segments[0].header.get("start_sha256"), header["start_sha256"], str(journal.path.parent))
