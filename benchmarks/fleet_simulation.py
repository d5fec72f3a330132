"""A fleet under a virtual clock: the real coordinator, stand-ins for workers, and a model of everything between them.

Model. A worker takes its messages one after another; an evaluation takes `range_seconds` times a log-normal number of
mean 1, times `straggler_factor` for a share of evaluations. A message travels for `latency`, and waits for its turn on
the coordinator's link, which has a bandwidth each way, and then for the coordinator's processor, where messages and
broadcast frames cost a time each. Workers die at a rate; another comes after `return_seconds` and builds its job.

`utilisation` is the time that the ranges of a generation would take on the workers without spread or stragglers, over
the time that the generation took. `waterfall` adds one cause after another, in a fixed order, and tells what each
costs; what it says of a cause depends on the causes before it. The same seed gives the same result.

`python benchmarks/fleet_simulation.py` prints tables and writes JSON and PNG.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import json
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stand_ins import Opened, StandIn, fleet_of, frames_of

from eggroll.core.errors import UsageError
from eggroll.distributed.coordinator import Coordinator
from eggroll.distributed.wire import Message, Received, Span, unpack, unpack_span
from eggroll.runs.environment import environment

_TICK_SECONDS = 0.2
"""As the server has it; where ranges are long, a tenth of a range, which changes little and saves most of the time."""
_MOST_EVENTS = 10**8


@dataclass(frozen=True)
class World:
    """What is simulated; the causes of loss are those fields that `without` sets to nothing."""

    workers: int = 100
    ranges_per_worker: int = 2
    pairs_per_range: int = 4
    range_seconds: float = 1.0
    generations: int = 20  # after one that is not counted, in which leases are longer
    carries: bool = False
    spread: float = 0.1  # standard deviation of the logarithm of an evaluation's time
    straggler_share: float = 0.001  # of evaluations
    straggler_factor: float = 20.0
    latency: float = 0.02  # seconds one way
    bandwidth: float = 125e6  # bytes per second of the coordinator's link, each way; 0: no limit
    message_seconds: float = 50e-6  # of the coordinator's processor, for a message that comes, with its answer
    frame_seconds: float = 75e-6  # for a frame that is sent to one worker
    between_seconds: float = 1e-3  # journal and shaping, once a generation
    update_share: float = 0.0  # an update takes this part of what one worker would need to evaluate the population
    death_rate: float = 0.05  # per worker and hour
    return_seconds: float = 60.0
    build_seconds: float = 10.0  # process, job, compilation
    rebuild_ranges: float = 10.0  # evaluations that a lost range with carry costs
    lease_seconds: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.workers, self.ranges_per_worker, self.pairs_per_range, self.generations) < 1:
            raise UsageError("expected at least 1 worker, range, pair and generation, got fewer")

    @property
    def population(self) -> int:
        """Such that the ranges are equal."""
        return 2 * self.workers * self.ranges_per_worker * self.pairs_per_range

    @property
    def ideal_seconds(self) -> float:
        """Of a generation."""
        return self.ranges_per_worker * self.range_seconds

    @property
    def update_seconds(self) -> float:
        return self.update_share * self.workers * self.ideal_seconds


CAUSES: dict[str, dict[str, float]] = {
    "latency": {"latency": 0.0},
    "bandwidth": {"bandwidth": 0.0},
    "processor": {"message_seconds": 0.0, "frame_seconds": 0.0, "between_seconds": 0.0},
    "update": {"update_share": 0.0},
    "spread": {"spread": 0.0},
    "failures": {"death_rate": 0.0},
    "stragglers": {"straggler_share": 0.0},
}
"""In the order in which a waterfall adds them, the coordinator's own first; with what each is switched off."""


def without(world: World, *causes: str) -> World:
    """The world where some causes cost nothing."""
    return dataclasses.replace(world, **{k: v for cause in causes for k, v in CAUSES[cause].items()})  # type: ignore


class Place:
    """A worker in the simulation: what waits for it, and when it was given up."""

    __slots__ = ("busy", "evaluations", "number", "queue", "rebuilding", "stand_in")

    def __init__(self, number: int, stand_in: StandIn) -> None:
        self.number, self.stand_in = number, stand_in
        self.queue: deque[Received] = deque()
        self.busy = False
        self.evaluations = 0
        self.rebuilding: set[Span] = set()


class Link:
    """One direction of the coordinator's network: first come, first served."""

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth, self.free, self.bytes = bandwidth, 0.0, 0

    def through(self, size: int, now: float) -> float:
        """When a message that is ready now has passed."""
        self.bytes += size
        self.free = max(self.free, now) + (size / self.bandwidth if self.bandwidth else 0.0)
        return self.free


class Simulation:
    """See the module.

    Args:
      kind: the coordinator, or another to compare with.
    """

    def __init__(self, world: World, kind: type[Coordinator] = Coordinator) -> None:
        self.world = world
        fleet = fleet_of(
            workers=world.workers,
            population=world.population,
            ranges_per_worker=world.ranges_per_worker,
            carries=world.carries,
            lease_seconds=world.lease_seconds,
        )
        self.opened = Opened(fleet, kind=kind)
        self.coordinator = self.opened.coordinator
        self.now, self._events, self._count = 0.0, [], itertools.count()
        self.up, self.down = Link(world.bandwidth), Link(world.bandwidth)
        self.places: dict[int, Place] = {}
        self._numbers = itertools.count()
        self._random = random.Random(world.seed)
        self._inbox: deque[tuple[int, bytes]] = deque()
        self._busy = self._ending = self._begun = False
        self.ends: list[float] = []
        self.evaluated = 0.0  # seconds of evaluation of all workers, from `begun` on
        self.deaths = 0
        self._last: tuple[bytes, Received] = (b"", Received(Message.BYE, 0, 0, b""))

    def run(self) -> dict[str, Any]:
        """All generations, and what they came to."""
        for _ in range(self.world.workers):
            self._connect()
        self._tick()
        handled = 0
        while len(self.ends) <= self.world.generations:
            self.now, _, call = heapq.heappop(self._events)
            call()
            handled += 1
            if handled > _MOST_EVENTS or self.coordinator.fault is not None:
                raise RuntimeError(f"no end: {self.coordinator.fault}, {self.coordinator.book.left} ranges left")
        return self._result()

    def _result(self) -> dict[str, Any]:
        world, wall = self.world, self.ends[-1] - self.ends[0]
        generation = wall / world.generations
        book = self.coordinator.book
        return {
            "generation_seconds": generation,
            "ideal_seconds": world.ideal_seconds,
            "utilisation": world.ideal_seconds / generation,
            "evaluating": self.evaluated / (wall * world.workers),  # whether or not the answer was needed
            "deaths": self.deaths,
            "resent": book.resent,
            "duplicates": book.duplicates,
            "up_bytes": self.up.bytes,
            "down_bytes": self.down.bytes,
        }

    def _at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._count), call))  # the count settles ties the same way each time

    # ── workers ──

    def _connect(self) -> None:
        place = Place(next(self._numbers), StandIn(self.opened.answers))
        self.places[place.number] = place
        self.coordinator.connected(place.number)
        if self.world.death_rate:
            self._at(self.now + self._random.expovariate(self.world.death_rate / 3600), lambda: self._die(place))
        self._send_out(self.now)

    def _die(self, place: Place) -> None:
        if place.number not in self.places:
            return
        del self.places[place.number]
        self.deaths += 1
        self.coordinator.closed(place.number, "died", self.now)
        self._send_out(self.now)
        self._at(self.now + self.world.return_seconds, self._connect)

    def _arrive(self, place: Place, message: Received) -> None:
        place.queue.append(message)
        if not place.busy:
            self._next_of(place)

    def _next_of(self, place: Place) -> None:
        place.busy = bool(place.queue)
        if place.busy:
            message = place.queue.popleft()
            self._at(self.now + self._takes(place, message), lambda: self._done(place, message))

    def _done(self, place: Place, message: Received) -> None:
        if place.number not in self.places:
            return
        for reply in place.stand_in.take(message):
            self._at(self.now + self.world.latency, lambda reply=reply: self._on_link(place.number, reply))
        self._next_of(place)

    def _takes(self, place: Place, message: Received) -> float:
        """Seconds of a worker for a message."""
        if message.kind is Message.WORK:
            return self._evaluation(place, message)
        if message.kind is Message.FRAME:
            place.evaluations = 0
            return self.world.update_seconds
        if message.kind is Message.REPLAY:
            place.rebuilding.add(unpack_span(message.body[:8]))
        return self.world.build_seconds if message.kind is Message.WELCOME and self.ends else 0.0

    def _evaluation(self, place: Place, message: Received) -> float:
        world, span, stand_in = self.world, unpack_span(message.body), place.stand_in
        if message.generation != stand_in.generation or stand_in.needs_carry(span):
            return 0.0
        # The same numbers whatever else happens, so that worlds can be compared: of the worker's own n-th evaluation.
        draw = random.Random(hash((world.seed, place.number, message.generation, place.evaluations)))
        place.evaluations += 1
        seconds = world.range_seconds * math.exp(draw.gauss(0, 1) * world.spread - world.spread**2 / 2)
        if draw.random() < world.straggler_share:
            seconds *= world.straggler_factor
        if span in place.rebuilding:
            place.rebuilding.discard(span)
            seconds += world.rebuild_ranges * world.range_seconds
        if self.ends:
            self.evaluated += seconds
        return seconds

    # ── the coordinator ──

    def _on_link(self, number: int, data: bytes) -> None:
        self._at(self.up.through(len(data), self.now), lambda: self._received(number, data))

    def _received(self, number: int, data: bytes) -> None:
        self._inbox.append((number, data))
        if not self._busy:
            self._busy = True
            self._work()

    def _work(self) -> None:
        """The processor takes the next message, or has nothing to do."""
        self._busy = bool(self._inbox)
        if self._busy:
            self._at(self.now + self.world.message_seconds, self._handle)

    def _handle(self) -> None:
        number, data = self._inbox.popleft()
        if number in self.places:
            self.coordinator.received(number, unpack(data), len(data), self.now)
        if self.coordinator.is_complete() and not self._ending:
            self._ending = True
            self._at(self.now + self.world.between_seconds, self._end_generation)
        self._at(self._send_out(self.now), self._work)

    def _end_generation(self) -> None:
        self.ends.append(self.now)
        self._ending = False
        self.coordinator.finish(frames_of(self.coordinator), self.now, more=True)
        self._send_out(self.now)
        self._at(self.now + self.world.update_seconds, self._expect)

    def _expect(self) -> None:
        self.opened.expect(self.now)
        if self.coordinator.is_complete() and not self._ending:  # all answers were here before the run's own update
            self._ending = True
            self._at(self.now + self.world.between_seconds, self._end_generation)
        self._send_out(self.now)

    def _tick(self) -> None:
        if not self._begun and self.coordinator.ready == self.world.workers:
            self._begun = True
            self.coordinator.begin(self.now)
        self.coordinator.tick(self.now)
        self._send_out(self.now)
        self._at(self.now + max(_TICK_SECONDS, self.world.range_seconds / 10), self._tick)

    def _send_out(self, now: float) -> float:
        """Send what the coordinator has put out; when its processor has done so."""
        out = self.coordinator.out
        while out:
            number, data = out.popleft()
            for part in [data] if isinstance(data, bytes) else data:
                message = self._unpacked(part)
                now += self.world.frame_seconds if message.kind is Message.FRAME else 0.0
                self._travel(number, message, self.down.through(len(part), now))
        return now

    def _unpacked(self, data: bytes) -> Received:
        if data is not self._last[0]:  # a broadcast is the same bytes to everybody
            self._last = (data, unpack(data))
        return self._last[1]

    def _travel(self, number: int, message: Received, sent: float) -> None:
        place = self.places.get(number)
        if place is not None:
            self._at(sent + self.world.latency, lambda: self._arrive(place, message))


# ── what is asked of it ──


def simulate(world: World, kind: type[Coordinator] = Coordinator) -> dict[str, Any]:
    """The world's generations, simulated."""
    return Simulation(world, kind).run()


def waterfall(world: World) -> dict[str, Any]:
    """The simulation, and by how much utilisation falls as each cause is added to those before it."""
    causes = list(CAUSES)
    before = simulate(without(world, *causes))["utilisation"]
    found: dict[str, Any] = {"lost": {"protocol": 1 - before}}
    for k, cause in enumerate(causes):
        if without(world, cause) == world:  # it costs nothing in this world
            found["lost"][cause] = 0.0
            continue
        result = simulate(without(world, *causes[k + 1 :]))
        found["lost"][cause] = before - result["utilisation"]
        before = result["utilisation"]
    return found | result


VARIANTS: dict[str, dict[str, Any]] = {
    "as above": {},
    "no stragglers": {"straggler_share": 0.0},
    "ranges of a quarter, 8 a worker": {"ranges_per_worker": 8, "range_seconds": 0.25},
    "shorter leases": {"lease_seconds": 0.5},
    "both": {"ranges_per_worker": 8, "range_seconds": 0.25, "lease_seconds": 0.5},
    "latency 0.2 s": {"latency": 0.2},
    "a link of 12.5 MB/s": {"bandwidth": 12.5e6},
    "a death an hour and worker": {"death_rate": 1.0},
    "the same, members carry state": {"death_rate": 1.0, "carries": True},
    "update 0.00005 of the evaluation": {"update_share": 5e-5},
    "update 0.005 of the evaluation": {"update_share": 5e-3},
}
"""What one change does to ranges of 1 s."""


def variants(world: World) -> dict[str, dict[str, Any]]:
    """The world with one thing changed each."""
    found = {}
    for name, changes in VARIANTS.items():
        found[name] = simulate(dataclasses.replace(world, **changes))
        print(f"{world.workers:>7,} {found[name]['utilisation']:>6.1%} {found[name]['resent']:>7,}  {name}", flush=True)
    return found


def points(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The waterfall of each size and kind of job."""
    causes = ["protocol", *CAUSES]
    print("share of the time that is lost to each cause; protocol: what is lost even where nothing costs")
    print(f"workers range s  ideal s   took s   used {' '.join(f'{cause:>10}' for cause in causes)}")
    for workers in options.workers:
        for seconds in options.range_seconds:
            world = _world(options, workers, seconds)
            found = waterfall(world)
            lost = " ".join(f"{found['lost'][cause]:>10.1%}" for cause in causes)
            times = f"{found['ideal_seconds']:>8.2f} {found['generation_seconds']:>8.2f}"
            print(f"{workers:>7,} {seconds:>7g} {times} {found['utilisation']:>6.1%} {lost}", flush=True)
            yield {"world": dataclasses.asdict(world), **found}


def _world(options: argparse.Namespace, workers: int, seconds: float) -> World:
    given = {field.name: getattr(options, field.name) for field in _FLAGS}
    generations = max(2, min(given["generations"], 10_000 // workers))  # about as many evaluations at any size
    return World(**given | {"workers": workers, "range_seconds": seconds, "generations": generations})


_FLAGS = [f for f in dataclasses.fields(World) if f.name not in ("workers", "range_seconds", "carries")]


def document(found: list[dict[str, Any]], changed: dict[str, dict[str, dict[str, Any]]]) -> None:
    """Print both tables in Markdown, as docs/scaling.md has them; shares in per cent."""
    causes = [cause for cause in CAUSES if any(each["lost"][cause] for each in found)]
    print(f"| workers | t, s | r·t, s | took, s | utilisation | {' | '.join(causes)} |")
    print(f"|{'---|' * (5 + len(causes))}")
    for each in found:
        world, lost = each["world"], " | ".join(f"{100 * each['lost'][cause]:.1f}" for cause in causes)
        times = f"{each['ideal_seconds']:g} | {each['generation_seconds']:.2f} | {100 * each['utilisation']:.1f}"
        print(f"| {world['workers']:,} | {world['range_seconds']:g} | {times} | {lost} |")
    print(f"\n| changed | {' | '.join(f'{int(workers):,} workers' for workers in changed)} |")
    print(f"|---|{'---|' * len(changed)}")
    for name in VARIANTS:
        shares = [f"{100 * each[name]['utilisation']:.1f}" for each in changed.values()]
        print(f"| {name} | {' | '.join(shares)} |")


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Utilisation against workers, a line for each kind of job; dashed: only network and coordinator cost time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    for k, seconds in enumerate(sorted({each["world"]["range_seconds"] for each in found})):
        line = [each for each in found if each["world"]["range_seconds"] == seconds]
        workers = [each["world"]["workers"] for each in line]
        network = [1 - sum(each["lost"][c] for c in ("latency", "bandwidth", "processor")) for each in line]
        axis.plot(workers, [each["utilisation"] for each in line], f"C{k}o-", label=f"ranges of {seconds:g} s")
        axis.plot(workers, network, f"C{k}s--", label=f"{seconds:g} s, only network and coordinator")
    axis.set(xscale="log", xlabel="workers", ylabel="utilisation", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--range-seconds", type=float, nargs="+", default=[0.05, 1.0, 30.0])
    parser.add_argument("--variants", type=int, nargs="*", default=[100, 1000], help="workers of the table of changes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder of fleet_simulation.json and .png")
    for field in _FLAGS:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    started = time.perf_counter()
    found = list(points(options))
    changed = {str(workers): variants(_world(options, workers, 1.0)) for workers in options.variants}
    result = {"points": found, "variants": changed, "environment": environment()}
    (options.out / "fleet_simulation.json").write_text(json.dumps(result, indent=1) + "\n")
    document(found, changed)
    draw(found, options.out / "fleet_simulation.png")
    print(json.dumps({"simulated": len(found), "seconds": round(time.perf_counter() - started, 1)}))


if __name__ == "__main__":
    main()
