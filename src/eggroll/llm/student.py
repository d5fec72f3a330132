"""An int8 student of a float teacher: which weights it has, what its members are worth, and how it learns."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from eggroll.core import noise
from eggroll.core.distribution import leaf_paths
from eggroll.core.errors import UsageError
from eggroll.core.mesh import place
from eggroll.core.state import seed_words
from eggroll.core.strategy import EvolutionStrategy
from eggroll.llm.distill_config import DistillConfig
from eggroll.llm.evolve import lattice_for
from eggroll.llm.lattice import (
    Bounds,
    Decays,
    Moments,
    bounds_of,
    chance_level,
    integer_weights,
    most_level,
    start_moments,
    update,
)
from eggroll.llm.population import Judge, Population
from eggroll.llm.prompts import Batch, Prompts
from eggroll.llm.rwkv7 import Params, read
from eggroll.runs.evolution import mesh_of, sigma_at
from eggroll.runs.job import Learner
from eggroll.runs.metrics import Metrics
from eggroll.runs.trees import nested, sha256_by_leaf

_LATE = 10_000
"""A generation at which moments have long forgotten their start."""
Lattice = dict[str, Any]
"""What a student learns: path → int8 leaf, "blocks/att/key/weight/int8"."""


class Student:
    """A model of which some weights are int8, with the parts that learn and those that stay told apart.

    Args:
      start: the student's tree at generation 0, NumPy.
      teacher: that it was rounded from, NumPy.
      config: which leaves learn, and how far they may go.
    Raises:
      UsageError: a pattern of --trainable fits no int8 weight.
    """

    def __init__(self, start: Params, teacher: Params, config: DistillConfig) -> None:
        self.strategy = _strategy(start, config)
        self.plan = self.strategy.plan(start)
        self._flat = dict(zip(leaf_paths(start), map(jnp.asarray, jax.tree.leaves(start)), strict=True))
        self.paths = [leaf.path for leaf in self.plan if not leaf.frozen]
        self.teacher = _digest(teacher)
        exact = dict(zip(leaf_paths(teacher), jax.tree.leaves(teacher), strict=True))
        self.bounds = [self._bounds(path, exact[path.removesuffix("/int8")], config) for path in self.paths]

    def _bounds(self, path: str, exact: np.ndarray, config: DistillConfig) -> Bounds:
        value, scale = (np.asarray(self._flat[f"{path.removesuffix('int8')}{part}"]) for part in ("int8", "scale"))
        return Bounds(*map(jnp.asarray, bounds_of(value, exact / scale[..., None], config.reach, config.levels)))

    @property
    def start(self) -> Lattice:
        """The learning leaves at generation 0."""
        return {path: self._flat[path] for path in self.paths}

    def model(self, lattice: Lattice) -> Params:
        """The whole tree."""
        leaves: dict[str, Any] = {**self._flat, **lattice}
        return nested(leaves)


def _digest(tree: Params) -> str:
    """SHA-256 over those of all leaves."""
    return hashlib.sha256(json.dumps(sha256_by_leaf(tree), sort_keys=True).encode()).hexdigest()


def _strategy(start: Params, config: DistillConfig) -> EvolutionStrategy:
    chosen = config.trainable or ("all",)
    patterns = ("*/int8",) if tuple(chosen) == ("all",) else tuple(f"{pattern}/int8" for pattern in chosen)
    try:
        strategy = EvolutionStrategy(
            optax.identity(),  # the update is the lattice's own
            population_size=config.population_size,
            sigma=lambda generation: sigma_at(config, generation),
            distribution=lattice_for(start, config.rank),
            shaping="group_per_prompt",
            group_size=config.group,
            chunk_size=config.chunk_size,
            trainable=patterns,
            mesh=mesh_of(config),
        )
        strategy.plan(start)
    except ValueError as error:  # a pattern or a rank that does not fit this model
        raise UsageError(str(error)) from None
    return strategy


def divergence(
    params: Params,
    tokens: Int[Array, "prompts time"],
    mask: Bool[Array, "prompts time"],
    answers: Int[Array, "prompts length"],
    known: Bool[Array, "prompts length"],
    teacher: Float[Array, "prompts length vocabulary"],
) -> Float[Array, " prompts"]:
    """KL(teacher ‖ student) of each prompt's answer, mean over its tokens, in nats.

    Args:
      teacher: `answer_log_probabilities` of the teacher.
    """
    own = answer_log_probabilities(params, tokens, mask, answers, known)
    each = (jnp.exp(teacher) * (teacher - own)).sum(-1)
    return jnp.where(known, each, 0).sum(-1) / known.sum(-1)


def answer_log_probabilities(
    params: Params,
    tokens: Int[Array, "prompts time"],
    mask: Bool[Array, "prompts time"],
    answers: Int[Array, "prompts length"],
    known: Bool[Array, "prompts length"],
) -> Float[Array, "prompts length vocabulary"]:
    """Of every token at each place of the answers, given what stands before it."""
    whole = jnp.concatenate([tokens, answers], axis=1)[:, :-1]
    there = jnp.concatenate([mask, jnp.ones_like(known)], axis=1)[:, :-1]
    logits, _ = read(params, whole, mask=there, all_logits=answers.shape[1])
    return jax.nn.log_softmax(logits)


def population_of(config: DistillConfig, prompts: Prompts, teacher: Params, student: Student) -> Population:
    """Members are worth −KL to the teacher on the task's answers."""
    teach = jax.jit(jax.vmap(answer_log_probabilities, in_axes=(None, 0, 0, 0, 0)))

    def fitness(params: Params, key: Any, *batch: Any) -> tuple[Any, Any]:
        return jnp.float32(0), -divergence(params, *batch)

    def arguments(batch: Batch) -> tuple[Any, ...]:
        answers, known = prompts.answers(batch, config.tokens)
        return answers, known, teach(teacher, batch.tokens, batch.mask, answers, known)

    def worth(aux: Any, batch: Batch, first: int) -> tuple[np.ndarray, np.ndarray]:
        values = np.asarray(aux, np.float32)
        rows = batch.tokens.shape[2] + config.tokens
        return values, np.array([values.size * rows, values.size, values.sum(dtype=np.float64)], np.float64)

    def metrics(tally: np.ndarray, generation: Any) -> Metrics:
        tokens, count, fitted = tally
        return {"generation_tokens": int(tokens), "kl_mean": float(-fitted / count)}

    judge = Judge(arguments, worth, metrics, student.model, integer_weights)
    return Population(student.strategy, fitness, prompts, config, judge)


def learner_for(config: DistillConfig, student: Student) -> Learner[Lattice]:
    """The student's start and its update: all that a replay needs."""
    decays = Decays(config.beta1_shift, config.beta2_shift)
    mesh = None if config.update == "redraw" else mesh_of(config)
    paths, seed = student.paths, seed_words(config.seed)
    if not chance_level(config.alpha, _LATE, decays) < most_level(decays):
        raise UsageError(
            f"expected --beta1-shift and --beta2-shift with which a gradient can pass the threshold of --alpha "
            f"{config.alpha}, got {config.beta1_shift} and {config.beta2_shift}; raise one of the three"
        )
    put = lambda leaf: leaf if mesh is None else place(mesh, leaf, PartitionSpec())
    moments = dict(zip(paths, start_moments(list(student.start.values())), strict=True))
    start, moments, bounds = jax.tree.map(put, (student.start, moments, student.bounds))

    @jax.jit
    def step(
        lattice: Lattice, moments: dict[str, Moments], bounds: Any, weights: Any, level: Any, generation: Any
    ) -> Any:
        leaves, kept = [lattice[path] for path in paths], [moments[path] for path in paths]
        settings = {"decays": decays, "bounds": bounds, "mesh": mesh, "seed": seed, "generation": generation}
        new, after, count = update(student.plan, leaves, kept, weights, level, **settings)
        return dict(zip(paths, new, strict=True)), dict(zip(paths, after, strict=True)), count

    size = sum(leaf.size for leaf in student.start.values())

    def updater(lattice: Lattice, optimizer: Any, weights: Any, generation: int) -> tuple[Lattice, Any, Metrics]:
        alpha = config.alpha_at(generation)
        level = np.float32(chance_level(alpha, generation, decays))
        kept = {path: Moments(*own) for path, own in optimizer.items()}
        whole = np.asarray(weights, np.int32)
        lattice, kept = jax.tree.map(put, (lattice, kept))  # they come from a snapshot where a run goes on
        new, after, count = step(lattice, kept, bounds, whole, level, np.int32(generation))
        return new, after, {"alpha": alpha, "moved_share": int(count) / size}

    return Learner(start, moments, updater, "float16", config.population_size // 2, _settings(config, student))


def _settings(config: DistillConfig, student: Student) -> dict[str, Any]:
    """Of the strategy, for the journal's header."""
    return {
        "population_size": config.population_size,
        "antithetic": True,
        "sigma": config.sigma,
        "sigma_decay": config.sigma_decay,
        "rank": config.rank,
        "optimizer": {
            "name": "lattice",
            "alpha": config.alpha,
            "alpha_decay": config.alpha_decay,
            "beta1_shift": config.beta1_shift,
            "beta2_shift": config.beta2_shift,
            "levels": config.levels,
            "reach": config.reach,
        },
        "shaping": "group_per_prompt, in 32nds of its root mean square",
        "noise": noise.noise_version([leaf.law for leaf in student.plan if not leaf.frozen]),
        "noise_reuse": 1,
        "trainable": student.paths,
        "teacher": student.teacher,
        "group_size": config.group,
        "chunk_size": config.chunk_size,
        "seed": config.seed,
    }
