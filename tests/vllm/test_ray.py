"""Two engines in actors of Ray are one: members shared out, engines that are killed, weights from engine to engine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from eggroll.distributed.ray_fleet import LOCAL, Placement
from eggroll.vllm.blueprint import blueprint_of
from eggroll.vllm.checkpoint import pack_kept, read_parts
from eggroll.vllm.crew import Crew
from eggroll.vllm.engine import Engine, Row, Sampling, Written
from eggroll.vllm.hands import There, ray_hands
from eggroll.vllm.learner import step_of
from tests.vllm.engines import config_of, prompts_of, settings_of
from tests.vllm.models import make_model
from tests.vllm.test_engine import closed

GENERATIONS = 3
CONFIG: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen3", tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def hands(folder: Path) -> Iterator[list[There]]:
    settings = settings_of(config_of(folder, **CONFIG), blueprint_of(folder), adapters=4)
    with ray_hands(settings, Placement(LOCAL, 2)) as found:
        assert all(len(hand.parts) == 1 for hand in found)
        yield found


def rows_of(folder: Path) -> list[list[Row]]:
    return [[Row(prompt) for prompt in prompts_of(folder, 2, 16)] for _ in range(16)]


def weights_of(written: list[list[Written]]) -> np.ndarray:
    """Pairs by what their members have written, so that the next generation hangs on it."""
    said = np.array([sum(map(len, (each.text for each in own))) for own in written], np.float32)
    return (said[::2] - said[1::2]) / 10


def train(crew: Crew, folder: Path) -> dict[str, np.ndarray]:
    """Some generations; the weights at the end."""
    config = config_of(folder, **CONFIG)
    for generation in range(crew.generation, crew.generation + GENERATIONS):
        written = crew.complete_members((generation, config.sigma), rows_of(folder), Sampling(24), 4)
        crew.update(step_of(config, generation), weights_of(written))
    parts = crew._one(0, "parts_held")
    return {name: value.numpy() for name, value in read_parts(crew.save(), parts)["weight"].items()}


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, np.ndarray]:
    """What one engine comes to, by itself."""
    config = config_of(folder, **CONFIG)
    engine = Engine(settings_of(config, blueprint_of(folder), adapters=4))
    try:
        for generation in range(GENERATIONS):
            written = engine.complete_members((generation, config.sigma), 0, rows_of(folder), Sampling(24))
            engine.update(step_of(config, generation), weights_of(written))
        return {n: v.numpy() for n, v in read_parts(engine.save(), engine.parts)["weight"].items()}
    finally:
        closed(engine)


def back_to_start(crew: Crew, folder: Path) -> None:
    """Engines at generation 0, whatever they have seen."""
    from tests.vllm.starts import start_kept

    crew.load(start_kept(config_of(folder, **CONFIG), folder), 0)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_two_engines_come_to_what_one_comes_to(hands: list[There], folder: Path, alone: dict[str, np.ndarray]) -> None:
    crew = Crew(hands, print)
    found = train(crew, folder)
    assert crew.revived == 0 and same(found, alone)
    rows = rows_of(folder)[0] * 3
    assert crew.complete_mean(rows, Sampling(8)) == crew._one(1, "complete_mean", rows, Sampling(8))


def test_an_engine_killed_as_it_writes(hands: list[There], folder: Path, alone: dict[str, np.ndarray]) -> None:
    said: list[str] = []
    crew = Crew(hands, said.append)
    back_to_start(crew, folder)
    doomed = hands[1].process_id
    Thread(target=lambda: (time.sleep(0.5), os.kill(doomed, signal.SIGKILL)), daemon=True).start()
    found = train(crew, folder)
    assert crew.revived == 1 and any("started anew" in line for line in said)
    assert any("bytes from engine" in line for line in said)  # from its living neighbour
    assert same(found, alone)


def test_an_engine_killed_as_it_updates(
    hands: list[There], folder: Path, alone: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    crew = Crew(hands, print)
    back_to_start(crew, folder)
    begin, updates = hands[0].begin, 0

    def killed(method: str, *arguments: Any) -> Any:
        nonlocal updates
        promise = begin(method, *arguments)
        updates += method == "update"
        if method == "update" and updates == 2:
            os.kill(hands[0].process_id_now, signal.SIGKILL)
        return promise

    monkeypatch.setattr(hands[0], "begin", killed)
    hands[0].process_id_now = hands[0].process_id  # type: ignore[attr-defined]
    found = train(crew, folder)
    assert crew.revived == 1
    assert same(found, alone)


def test_all_engines_killed_at_once(hands: list[There], folder: Path, alone: dict[str, np.ndarray]) -> None:
    """Nobody is left to take weights from: what was kept last, and the updates since."""
    said: list[str] = []
    crew = Crew(hands, said.append)
    back_to_start(crew, folder)
    config = config_of(folder, **CONFIG)
    for generation in range(GENERATIONS):
        written = crew.complete_members((generation, config.sigma), rows_of(folder), Sampling(24), 4)
        crew.update(step_of(config, generation), weights_of(written))
        if generation == 0:
            parts = crew._one(0, "parts_held")
            crew.keep(pack_kept(read_parts(crew.save(), parts)))
        if generation == 1:
            for hand in hands:
                os.kill(hand.process_id, signal.SIGKILL)
    found = {n: v.numpy() for n, v in read_parts(crew.save(), crew._one(0, "parts_held"))["weight"].items()}
    assert crew.revived == 2
    assert same(found, alone)
