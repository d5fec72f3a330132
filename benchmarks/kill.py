"""Kill runs at any instant, resume them, and compare with the run that was never stopped.

`python benchmarks/kill.py` does so for integer pretraining, `--float32` for `eggroll.train` with Adam (with and without
a carry): parameters and optimiser to the bit, `journal.egg` to the byte, `metrics.jsonl` but for its times.
Kills are SIGKILL, aimed at the n-th call of a function of the library or the system (see `killer.py`) or at a random
time; a few runs get SIGTERM, SIGINT or SIGINT twice instead. Each run dies one to three times.

Everything is imported once, and each process of a run is a fork of that; `--cold` runs are new processes, so that they
die while they import and compile, too. Prints a table of where they died, then one line of JSON; exit status 1 if a run
came out otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from killer import POINTS, WHEN, Board, Kill, Killer

import eggroll
from eggroll import cli
from eggroll.core.errors import UsageError
from eggroll.runs import loop, snapshots
from eggroll.runs.environment import environment
from eggroll.runs.folder import RunFolder
from eggroll.runs.job import Evaluated, Job, Learner, RunState
from eggroll.runs.trees import digest

SNAPSHOT_EVERY, VALIDATE_EVERY = 3, 5
LIMIT = 180
"""Seconds that one process of a run may take."""
SIGNALS = ((signal.SIGTERM,), (signal.SIGINT,), (signal.SIGINT, signal.SIGINT))
TIMES = ("seconds", "update_seconds")
VALIDATED = {"loss", "bits_per_byte"}
INTERRUPTED = (130, -signal.SIGTERM, -signal.SIGINT)
"""What stop requests end in: by the loop, or by the system before it listens."""


# ── jobs ──


def pretrain(path: Path, generations: int, data: Path) -> int:
    """Start or go on with an integer run; returns the exit status."""
    return cli.main(pretrain_arguments(path, generations, data))


def pretrain_arguments(path: Path, generations: int, data: Path) -> list[str]:
    if (path / "config.json").exists():
        return ["pretrain", "--resume", "--run-dir", str(path)]
    settings = f"--preset tiny --population-size 64 --group-size 8 --seq-len 8 --generations {generations}"
    cadence = f"--snapshot-every {SNAPSHOT_EVERY} --validate-every {VALIDATE_EVERY} --sample-bytes 0"
    return ["pretrain", *settings.split(), *cadence.split(), "--data", str(data), "--run-dir", str(path)]


def float32(*, carry: bool) -> Callable[[Path, int, Path], int]:
    """A float32 MLP that learns sin(3x) with `eggroll.train` and Adam; the carry is a memory of each member."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        hidden = jnp.tanh(x[:, None] @ params["in"].T + params["bias"])
        return jnp.mean((hidden @ params["out"].T - jnp.sin(3 * x)[:, None]) ** 2)

    def fitness(params: Any, key: Any, *memory: Any) -> Any:
        score = -loss(params, jax.random.uniform(key, (16,), minval=-1.0, maxval=1.0))
        return (score + 0.1 * memory[0], 0.9 * memory[0] + score) if carry else score

    def run(path: Path, generations: int, data: Path) -> int:
        key = jax.random.key(0)
        params = {"in": jax.random.normal(key, (8, 1)), "bias": jnp.zeros(8), "out": jax.random.normal(key, (1, 8)) / 3}
        summary = eggroll.train(
            eggroll.EvolutionStrategy(optax.adam(0.02), population_size=32, sigma=0.05, chunk_size=16),
            params,
            fitness,
            generations=generations,
            carry=jnp.zeros(32) if carry else None,
            validate=lambda params: {"loss": float(loss(params, jnp.linspace(-1, 1, 64)))},
            run_dir=path,
            resume=(path / "config.json").exists(),
            validate_every=VALIDATE_EVERY,
            snapshot_every=SNAPSHOT_EVERY,
        )[1]
        return 0 if summary["finished"] else loop.STATUS_INTERRUPTED

    return run


def plain(*, carry: bool) -> Callable[[Path, int, Path], int]:
    """Plain NumPy, with momentum, shared state, lost members and float16 frames: for tests, quick."""
    start, zeros = {"w": np.linspace(-1, 1, 6, dtype=np.float32)}, np.zeros(6, np.float32)

    def noise(generation: int) -> np.ndarray:
        return np.random.default_rng(generation).standard_normal((16, 6), np.float32)

    def evaluate(state: RunState, generation: int) -> Evaluated:
        own = state.carry if carry else np.zeros(16, np.float32)
        score = np.tanh(noise(generation) @ state.parameters["w"] - state.shared["mean"] + own)
        shared = {"mean": state.shared["mean"] * np.float32(0.9) + np.float32(0.1) * score.mean()}
        lost = (2 * (generation % 16) + 1,) if generation % 3 == 0 else ()
        own = own / np.float32(3) + np.exp(score) if carry else None
        return Evaluated(score, own, {"fitness_mean": float(score.mean())}, shared, lost)

    def update(parameters: Any, optimizer: Any, weights: Any, generation: int) -> Any:
        momentum = optimizer["m"] * np.float32(0.9) + weights.astype(np.float32) @ noise(generation) / np.float32(16)
        return {"w": parameters["w"] - np.float32(0.3) * np.sin(momentum)}, {"m": momentum}, {}

    def run(path: Path, generations: int, data: Path) -> int:
        job: Job[Any] = Job(
            name="kill",
            config={},
            learner=Learner(start, {"m": zeros}, update, "float16", 16, {"population_size": 32}),
            evaluate=evaluate,
            validate=lambda state: {"loss": float(np.abs(state.parameters["w"]).sum())},
            main_metric="loss",
            units=("members", 32),
            generations=generations,
            validate_every=VALIDATE_EVERY,
            snapshot_every=SNAPSHOT_EVERY,
            carry=np.zeros(16, np.float32) if carry else None,
            shared={"mean": np.zeros((), np.float32)},
        )
        resumed = (path / "config.json").exists()
        folder = RunFolder.open(path) if resumed else RunFolder.create(path, "kill", {})
        return loop.run(job, folder, extra={}).exit_status

    return run


JOBS: dict[str, Callable[[Path, int, Path], int]] = {
    "integer": pretrain,
    "float32": float32(carry=False),
    "float32-carry": float32(carry=True),
    "numpy": plain(carry=False),
    "numpy-carry": plain(carry=True),
}
REPLAYED = ("float32", "numpy")
"""Jobs without a carry: generations after the newest snapshot are replayed, and lack what only an evaluation tells."""


# ── one process of a run ──


class Clock(NamedTuple):
    """Signals at a time: so many seconds after the fork, or after the second evaluation began."""

    seconds: float
    training: bool
    signals: tuple[int, ...] = (signal.SIGKILL,)


class End(NamedTuple):
    """How a process ended."""

    status: int  # exit status, or −signal
    phase: str
    seconds: float
    calls: dict[str, int]  # of every point, where it came to its end
    training: float = 0.0  # seconds from the second evaluation on, likewise


@dataclass
class Workshop:
    """Forks processes that work on runs of one job."""

    kind: str
    generations: int
    path: Path
    board: Board = field(default_factory=Board)

    def __post_init__(self) -> None:
        self.data = self.path / "data.txt"
        words = np.random.default_rng(0).choice(["egg", "roll", "noise", "journal", "frame", "pair", "of"], 4000)
        self.data.write_text(" ".join(words))

    def process(self, run: Path, plan: Kill | Clock | None = None) -> End:
        """Start or go on with a run, until it ends or as planned."""
        self.board.reset()
        begun, counts = time.perf_counter(), self.path / "counts.json"
        counts.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            self._work(run, plan if isinstance(plan, Kill) else None, counts)
        if isinstance(plan, Clock):
            self._strike(child, plan)
        status = _wait(child)
        seconds = time.perf_counter() - begun
        calls, training = json.loads(counts.read_text()) if counts.exists() else ({}, 0.0)
        return End(status, self.board.phase, seconds, calls, training)

    def _work(self, run: Path, kill: Kill | None, counts: Path) -> None:
        status = 99
        try:
            log = os.open(run.with_name(f"{run.name}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            for name, value in (("dir", str(self.path / "cache")), ("max_size", -1)):
                jax.config.update(f"jax_compilation_cache_{name}", value)
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
            killer = Killer(self.board, kill)
            killer.install()
            status = JOBS[self.kind](run, self.generations, self.data)
            counts.write_text(json.dumps([killer.calls, time.perf_counter() - killer.compiled]))
        except KeyboardInterrupt:
            status = 130
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _strike(self, child: int, clock: Clock) -> None:
        while clock.training and not self.board.training:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.001)
        time.sleep(clock.seconds)
        for number in clock.signals:
            os.kill(child, number)
            time.sleep(0.005)

    def digest(self, run: Path) -> str:
        """SHA-256 over the newest snapshot, made by a process of its own: forks must not have used JAX."""
        found = self.path / "digest.txt"
        found.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            generation, tree = snapshots.load(RunFolder.open(run))
            found.write_text(f"{generation} {digest(tree)}")
            os._exit(0)
        return found.read_text() if _wait(child) == 0 else "none"


def _wait(child: int) -> int:
    end = time.perf_counter() + LIMIT
    while time.perf_counter() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM


# ── comparison ──


def kept(run: Path) -> dict[str, Any]:
    """What must be the same, but for metrics and bits."""
    names = sorted(path.name for path in run.iterdir()) + sorted(path.name for path in (run / "snapshots").iterdir())
    return {"journal": hashlib.sha256((run / "journal.egg").read_bytes()).hexdigest(), "names": names}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines without their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES and not k.endswith("_per_second")} for line in lines]


def differences(reference: Path, run: Path, *, replayed: bool, stopped: bool) -> list[str]:
    """What is not as it is in the run that was never stopped.

    Args:
      replayed: the job has no carry, and lines of replayed generations may lack what only an evaluation tells.
      stopped: by request, at whose end the loop validates and snapshots out of turn.
    """
    expected, got, found = kept(reference), kept(run), []
    if stopped:
        for side in (expected, got):
            side["names"] = [name for name in side["names"] if not name.isdecimal()]
    found += [f"{name}: {got[name]}, expected {expected[name]}" for name in expected if expected[name] != got[name]]
    lines, others = metrics(reference), metrics(run)
    if [line["generation"] for line in others] != [line["generation"] for line in lines]:
        found.append(f"metrics: generations {[line['generation'] for line in others]}")
    for line, other in zip(lines, others, strict=False):
        again = replayed and other.pop("replayed", False)
        may_lack = line.keys() - VALIDATED if again else set()
        may_add = VALIDATED - line.keys() if stopped else set()
        others_own = {key: value for key, value in other.items() if key not in may_add}
        if others_own != {key: value for key, value in line.items() if key in other or key not in may_lack}:
            found.append(f"metrics: {other}, expected {line}")
    return found


# ── many runs ──


@dataclass
class Tally:
    """What came of the runs."""

    deaths: Counter[str] = field(default_factory=Counter)
    runs: list[dict[str, Any]] = field(default_factory=list)
    replayed_lines: int = 0

    def note(self, name: str, ends: list[End], found: list[str]) -> None:
        """One run more."""
        dead = [end for end in ends if end.status == -signal.SIGKILL]
        self.deaths.update(end.phase for end in dead)
        stops = [end.status for end in ends if end.status in INTERRUPTED]
        for end in ends:
            if end.status not in (0, -signal.SIGKILL, *INTERRUPTED):
                found = [*found, f"exit status {end.status} in {end.phase}"]
        self.runs.append({"run": name, "died": [end.phase for end in dead], "stops": len(stops), "wrong": found})
        for line in found:
            print(f"{name}: {line}", file=sys.stderr, flush=True)


def one_run(shop: Workshop, reference: str, name: str, plans: list[Kill | Clock], tally: Tally) -> None:
    """A run that dies as planned, is resumed until it is finished, and is compared."""
    run, ends = shop.path / name, []
    for plan in [*plans, None]:
        ends.append(shop.process(run, plan))
        if ends[-1].status == 0:
            break
    compare(shop, reference, run, ends, tally)


def compare(shop: Workshop, reference: str, run: Path, ends: list[End], tally: Tally) -> None:
    stopped = any(end.status in INTERRUPTED for end in ends)
    try:
        found = differences(shop.path / "reference", run, replayed=shop.kind in REPLAYED, stopped=stopped)
        tally.replayed_lines += sum(bool(line.get("replayed")) for line in metrics(run))
        if (bits := shop.digest(run)) != reference:
            found.append(f"bits: {bits}, expected {reference}")
    except OSError as error:
        found = [str(error)]
    tally.note(f"{shop.kind} {run.name}", ends, found)


def plans_of(number: int, first: End, random: np.random.Generator) -> list[Kill | Clock]:
    """One to three ends for a run: aimed in turn at every point, at random times, or by request."""
    points = [point for point in POINTS if first.calls.get(point)]
    if number % 10 == 9:
        training = number % 40 != 39
        after = random.uniform(0, first.training if training else first.seconds - first.training)
        return [Clock(after, training, SIGNALS[number // 10 % 3])]
    plans: list[Kill | Clock] = []
    for turn in range(random.integers(1, 4)):
        if number % 5 in (1, 3):
            training = bool(random.uniform() < 0.8)
            longest = first.training if training else first.seconds - first.training
            plans.append(Clock(random.uniform(0, longest / (1 + turn)), training))
        else:
            point = points[number % len(points)] if turn == 0 else str(random.choice(POINTS))
            count = int(random.integers(1, max(2, 1 + first.calls.get(point, 0) // (1 + turn))))
            plans.append(Kill(point, count, str(random.choice(WHEN)), random.uniform()))
    return plans


def cold_run(shop: Workshop, reference: str, name: str, random: np.random.Generator, tally: Tally) -> None:
    """A run in processes of its own by the command line, killed at random times from the very start."""
    run, ends = shop.path / name, []
    for kills in (True, True, False):
        arguments = [sys.executable, "-m", "eggroll", *pretrain_arguments(run, shop.generations, shop.data)]
        begun = time.perf_counter()
        with (shop.path / f"{name}.log").open("ab") as log, subprocess.Popen(arguments, stdout=log, stderr=log) as own:
            try:
                own.wait(random.uniform(0.2, 8) if kills else LIMIT)
            except subprocess.TimeoutExpired:
                own.kill()
        phase = "cold, with a journal" if (run / "journal.egg").exists() else "cold, before the journal"
        ends.append(End(own.returncode, phase, time.perf_counter() - begun, {}))
        if own.returncode == 0:
            break
    compare(shop, reference, run, ends, tally)


def begin(kind: str, generations: int, folder: Path, *, timed: bool) -> tuple[Workshop, str, End]:
    """The run that is never stopped; where its times count, another one first leaves the compiled programs behind."""
    shop = Workshop(kind, generations, folder)
    for name in ("compiled", "reference") if timed else ("reference",):
        end = shop.process(shop.path / name)
        if end.status:
            raise SystemExit((shop.path / f"{name}.log").read_text())
    return shop, shop.digest(shop.path / "reference"), end


def parse_case(text: str) -> tuple[str, list[Kill | Clock]]:
    """`JOB=POINT:COUNT:WHEN[:SHARE][,…]`."""
    kind, kills = text.split("=")
    parts = (kill.split(":") for kill in kills.split(","))
    return kind, [Kill(part[0], int(part[1]), part[2], float((*part, "0.5")[3])) for part in parts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--float32", action="store_true", help="an EvolutionStrategy with Adam")
    parser.add_argument("--runs", type=int, default=60, help="of each job")
    parser.add_argument("--cold", type=int, default=4, help="more of them in processes of their own (integer)")
    parser.add_argument("--generations", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the runs, which stay there; none: a temporary one")
    parser.add_argument("--cases", nargs="*", default=(), help="in place of all this: JOB=POINT:COUNT:WHEN[:SHARE][,…]")
    options = parser.parse_args()
    begun, tally = time.perf_counter(), Tally()
    cases = [parse_case(case) for case in options.cases]
    kinds = list(dict.fromkeys(kind for kind, _ in cases)) or (
        ["float32", "float32-carry"] if options.float32 else ["integer"]
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        for kind in kinds:
            folder = (options.keep or Path(temporary)) / kind
            folder.mkdir(parents=True)
            shop, reference, first = begin(kind, options.generations, folder, timed=not cases)
            random = np.random.default_rng(options.seed)
            given = [plans for own, plans in cases if own == kind]
            for number in range(len(given) if cases else options.runs):
                plans = given[number] if cases else plans_of(number, first, random)
                one_run(shop, reference, f"run-{number}", plans, tally)
            for number in range(0 if cases or kind != "integer" else options.cold):
                cold_run(shop, reference, f"cold-{number}", random, tally)
    return report(kinds, tally, time.perf_counter() - begun)


def report(kinds: list[str], tally: Tally, seconds: float) -> int:
    """Prints the table and the line of JSON."""
    rows = [f"| {phase} | {count} |" for phase, count in sorted(tally.deaths.items())]
    print("\n".join(["| died in | times |", "|---|---|", *rows]))
    identical = sum(not run["wrong"] for run in tally.runs)
    result = {
        "jobs": kinds,
        "runs": len(tally.runs),
        "identical": identical,
        "kills": tally.deaths.total(),
        "stop_requests": sum(run["stops"] for run in tally.runs),
        "died_in": dict(sorted(tally.deaths.items())),
        "replayed_lines": tally.replayed_lines,
        "seconds": round(seconds, 1),
        "wrong": [run for run in tally.runs if run["wrong"]],
        **environment(),
    }
    print(json.dumps(result))
    return int(identical < len(tally.runs))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(str(error))
