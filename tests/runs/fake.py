"""A job of plain NumPy whose every value follows from the generation, so that it can be told what the loop did."""

import os
from dataclasses import dataclass, field

import numpy as np

from eggroll.runs import loop
from eggroll.runs.folder import RunFolder
from eggroll.runs.job import Evaluated, Job, Learner

PAIRS = 7


@dataclass
class Fake:
    """Parameters add up the weights, the optimiser counts, the carry remembers; `signals` come in generation `at`."""

    at: int = -1
    signals: tuple[int, ...] = ()
    carries: bool = True
    shares: bool = False
    loses: dict[int, tuple[int, ...]] = field(default_factory=dict)
    drift: float = 0.0
    calls: list[tuple[str, int]] = field(default_factory=list)

    def weights(self, generation, salt):
        return np.random.default_rng([generation, salt]).integers(-1, 2, PAIRS).astype(np.int8)

    def evaluate(self, state, generation):
        self.calls.append(("evaluate", generation))
        if generation == self.at:
            for number in self.signals:
                os.kill(os.getpid(), number)
        salt = int(np.sum(state.carry["n"])) % 97 if self.carries else 0
        weights = self.weights(generation, salt) + np.float32(self.drift)
        carry = {"n": state.carry["n"] + np.int32(generation)} if self.carries else None
        shared = {"mean": state.shared["mean"] + np.float32(0.5)} if self.shares else ()
        fitness = {"fitness_mean": -float(generation)}
        return Evaluated(weights, carry, fitness, shared, self.loses.get(generation, ()))

    def update(self, parameters, optimizer, weights, generation):
        self.calls.append(("update", generation))
        moved = np.int32(weights @ np.arange(1, PAIRS + 1))
        return {"w": parameters["w"] + moved}, (optimizer[0] + 1,), {"moved": int(moved)}

    def validate(self, state):
        parameters = state.parameters
        self.calls.append(("validate", int(parameters["w"])))
        return {"loss": float(parameters["w"])}

    def learner(self, frames="ternary"):
        start = {"w": np.zeros((), np.int32)}
        return Learner(start, (np.zeros((), np.int32),), self.update, frames, PAIRS, {"law": "none"})

    def job(self, frames="ternary", **settings):
        shape = {"generations": 7, "validate_every": 3, "snapshot_every": 2, "config": {"job": "fake"}} | settings
        return Job(
            name="fake",
            learner=self.learner(frames),
            evaluate=self.evaluate,
            validate=self.validate,
            main_metric="loss",
            units=("things", 50),
            carry={"n": np.zeros(3, np.int32)} if self.carries else None,
            shared={"mean": np.zeros(2, np.float32)} if self.shares else (),
            **shape,
        )


def train(path, fake, **settings):
    """Run, or go on with what is in the folder."""
    folder = RunFolder.open(path) if path.exists() else RunFolder.create(path, "fake", {"job": "fake"})
    said: list[str] = []
    return loop.run(fake.job(**settings), folder, extra={}, say=said.append), folder, said
