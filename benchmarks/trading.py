"""The trading room on two cores.

python benchmarks/trading.py book      # messages a second of the book in JAX against the plain-Python oracle
python benchmarks/trading.py train     # three seeds: a model of messages, and its fine-tuning; what is there stays
python benchmarks/trading.py results   # what the runs say, as Markdown
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the oracle is a part of the tests

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.trading.plain_book import PlainBook

import eggroll
from eggroll.trading.book import Book, Message, play
from eggroll.trading.calibration import read_calibration
from eggroll.trading.flow import opened, simulate

ROOT = Path(__file__).resolve().parents[1]
BOOKS = 256
ASKED = 500_000
"""Messages a second on two cores."""
OPENING = 5_850_000


class Speed(NamedTuple):
    """Messages a second, by each repeat."""

    name: str
    wall: list[float]
    cpu: list[float]  # a second of one core


def measured(calls: dict[str, tuple[int, Callable[[], Any]]], repeats: int) -> list[Speed]:
    """Time calls in turns, so that what else the machine does hits all alike.

    Args:
      calls: name → messages that a call plays, and the call.
    """
    found = [Speed(name, [], []) for name in calls]
    for _ in range(repeats):
        for speed, (count, call) in zip(found, calls.values(), strict=True):
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(call())
            speed.wall.append(count / (time.perf_counter() - wall))
            speed.cpu.append(count / (time.process_time() - cpu))
    return found


def markets(count: int, messages: int, seed: int) -> tuple[Book, Message]:
    """Books that have been traded for a while, (count, …), and the messages that follow, (count, messages)."""
    flow = read_calibration().flow()

    @jax.jit
    @jax.vmap
    def made(key: jax.Array) -> tuple[Book, Message]:
        first, then = jax.random.split(key)
        book, state = opened(flow, first, OPENING)
        return book, simulate(flow, then, messages, book, state)[1][1]

    return made(jax.random.split(jax.random.key(seed), count))


def oracle_of(book: Book) -> PlainBook:
    """The plain book with the orders of one in JAX."""
    plain = PlainBook(book.key.shape[-1])
    for side, sign, orders in ((0, -1, plain.bids), (1, 1, plain.asks)):
        key, size, name, came = (np.asarray(each)[side].tolist() for each in book[:4])
        live = sorted(zip(key, came, name, size, strict=True))
        orders += [[name, sign * key, size] for key, _, name, size in live if size > 0]
    return plain


def at(tree: Any, number: int) -> Any:
    """One of many books or streams, on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf)[number], tree)


def split_over(count: int, tree: Any) -> Any:
    """Laid over so many devices."""
    return jax.device_put(
        tree, NamedSharding(Mesh(np.array(jax.devices()[:count]), ("books",)), PartitionSpec("books"))
    )


def player(count: int) -> Callable[[Book, Message], Any]:
    """`play` for many books, a block of them on each of so many devices."""
    mesh = Mesh(np.array(jax.devices()[:count]), ("books",))
    whole = PartitionSpec("books")
    share = jax.vmap(play)
    return jax.jit(jax.shard_map(share, mesh=mesh, in_specs=(whole, whole), out_specs=whole, check_vma=False))


def book(arguments: argparse.Namespace) -> None:
    """256 books of 100 orders a side, and a few of them by the oracle, with the same messages."""
    books, stream = markets(BOOKS, arguments.messages, arguments.seed)
    rows = [
        list(zip(*(leaf.tolist() for leaf in at(stream, number)), strict=True)) for number in range(arguments.plain)
    ]
    plain: list[PlainBook] = []

    def oracle() -> None:
        plain[:] = [oracle_of(at(books, number)) for number in range(arguments.plain)]
        for own, messages in zip(plain, rows, strict=True):
            for message in messages:
                own.apply(*message)

    calls: dict[str, tuple[int, Callable[[], Any]]] = {}
    for devices in (2, 1):
        own, placed = player(devices), split_over(devices, (books, stream))
        after, _ = own(*placed)
        name = f"JAX, {BOOKS} books at once, {devices} {'cores' if devices > 1 else 'core'}"
        calls[name] = BOOKS * arguments.messages, lambda own=own, placed=placed: own(*placed)
    calls["plain Python, 1 core"] = arguments.plain * arguments.messages, oracle
    found = measured(calls, arguments.repeats)
    for number, own in enumerate(plain):
        assert_same(at(after, number), own)
    held = (np.asarray(after.size) > 0).sum(-1).mean()
    print(
        f"{BOOKS} books of {after.key.shape[-1]} slots a side, {held:.0f} of them taken on average, "
        f"{arguments.messages:,} messages each from `flow.simulate`; the oracle plays {arguments.plain} of the books, "
        f"and ends with the same orders. Medians of {arguments.repeats} repeats in turns.\n"
    )
    print(table(found))
    ratio = statistics.median(two / one for two, one in zip(found[0].wall, found[-1].wall, strict=True))
    fast = statistics.median(found[0].wall)
    print(
        f"\nAsked: {ASKED:,} messages a second on two cores, and 10 times the oracle. Found: {fast:,.0f}, {ratio:.0f}×."
    )


def train(arguments: argparse.Namespace) -> None:
    """Pretrain and fine-tune with the settings that there are, seed by seed."""
    for seed in range(arguments.seeds):
        model, place = (arguments.home / f"{name}-{seed}" for name in ("model", "execute"))
        pretrain = ["pretrain", "--run-dir", str(model), *(["--sample", arguments.sample] if arguments.sample else [])]
        most = ["--max-seconds", str(arguments.seconds)]
        for folder, command in ((model, pretrain), (place, ["execute", "--model", str(model), *most])):
            if not (folder / "summary.json").exists():
                own = [sys.executable, "-m", "eggroll", "trade", command[0], "--run-dir", str(folder), *command[1:]]
                environment = os.environ | {"XLA_FLAGS": ""}  # one device: XLA shares its work over the cores
                subprocess.run([*own, "--seed", str(seed)], check=True, env=environment)
    results(arguments)


def results(arguments: argparse.Namespace) -> None:
    """PnL of held-out episodes, seed by seed."""
    head = ("seed", "immediate", "TWAP", "start", "end", "over TWAP", "over start", "variance: TWAP, start, end", "s")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for path in sorted(arguments.home.glob("execute-*/summary.json")):
        own = json.loads(path.read_text())
        over = (f"{own[f'over_{name}']:.1f} ± {own[f'over_{name}_error']:.1f}" for name in ("twap", "start"))
        pnl = (f"{own[f'{name}pnl']:.1f}" for name in ("immediate_", "twap_", "start_", ""))
        variance = ", ".join(f"{own[f'{name}pnl_variance']:,.0f}" for name in ("twap_", "start_", ""))
        cells = (path.parent.name.rpartition("-")[2], *pnl, *over, variance, f"{own['seconds']:.0f}")
        print(f"| {' | '.join(cells)} |")
    fields = ("kind", "side", "gap", "price", "size")
    print(f"\n| model | nats a message | {' | '.join(fields)} |\n|{'---|' * (len(fields) + 2)}")
    for path in sorted(arguments.home.glob("model-*/summary.json")):
        own = json.loads(path.read_text())
        for prefix, told in (("start_", "start"), ("", "held-out days"), ("sample_", "real sample")):
            if f"{prefix}nats_per_message" in own:
                cells = (f"{own[f'{prefix}perplexity_{field}']:,.2f}" for field in fields)
                name = f"{path.parent.name}, {told}"
                print(f"| {name} | {own[f'{prefix}nats_per_message']:.2f} | {' | '.join(cells)} |")


def assert_same(book: Book, plain: PlainBook) -> None:
    """End the benchmark where the two books differ."""
    own = oracle_of(book)
    if (own.bids, own.asks) != (plain.bids, plain.asks):
        raise SystemExit("the book in JAX and the plain one came to different orders: the figures would mean nothing")


def table(found: Sequence[Speed]) -> str:
    """Messages a second as Markdown; the last is what the others are measured by."""
    lines = ["| book | messages a second | least to most | a second of one core | × |", "|---|---|---|---|---|"]
    for speed in found:
        ratio = statistics.median(own / last for own, last in zip(speed.wall, found[-1].wall, strict=True))
        cells = (
            speed.name,
            f"{statistics.median(speed.wall):,.0f}",
            f"{min(speed.wall):,.0f} to {max(speed.wall):,.0f}",
            f"{statistics.median(speed.cpu):,.0f}",
            f"{ratio:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine() -> str:
    """What a figure was taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = (names or [platform.processor() or platform.machine()])[0]
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return (
        f"Machine: {name}, {os.cpu_count()} cores{load}. eggroll {eggroll.__version__}, jax {jax.__version__}, "
        f"NumPy {np.__version__}, Python {platform.python_version()}. Date: {datetime.date.today()}.\n"
        f"Command: `python benchmarks/{Path(__file__).name} {' '.join(sys.argv[1:])}`\n"
    )


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("book", help="the book against the oracle")
    command.add_argument("--messages", type=int, default=500, help="for each book")
    command.add_argument("--plain", type=int, default=16, help="books that the oracle plays")
    command.add_argument("--repeats", type=int, default=9)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=book)
    for name, run in (("train", train), ("results", results)):
        command = commands.add_parser(name, help=run.__doc__)
        command.add_argument("--home", type=Path, default=ROOT / "runs" / "trading-benchmark")
        command.add_argument("--seeds", type=int, default=3)
        command.add_argument("--seconds", type=float, default=1200.0, help="of fine-tuning, each seed, at most")
        command.add_argument("--sample", default="", help="LOBSTER message file, for perplexity apart")
        command.set_defaults(run=run)
    arguments = parser.parse_args()
    print(machine())
    arguments.run(arguments)


if __name__ == "__main__":
    main()
