"""Free memory, and the population that it holds, by the rules of `core.memory` and of the jobs themselves.

Two numbers say what fits. How many members are evaluated at a time: their noise and activations are in memory together.
And how many there may be in all, since each keeps something through its generation: a fitness, a state.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.bench import policy
from eggroll.core import memory
from eggroll.core.distribution import LowRank, make_plan
from eggroll.core.population import Setting, evaluate
from eggroll.pretrain.config import MOST_MEMBERS as MOST_INTEGER_MEMBERS
from eggroll.pretrain.config import preset
from eggroll.pretrain.population import chunk_pairs

BYTES_OF_MEMBER = 48
"""What a step keeps of each member of a float population without a carry: fitness, utility and what shaping them takes.
The compiler says 41 (jax 0.10.2, CPU, z-score)."""
COPIES_OF_WEIGHTS = 7
"""Old weights and new ones, two moments of Adam, old and new, and the gradient."""
MOST_MEMBERS = 2**31 - 2
"""Members are numbered in int32."""
_MANY_PAIRS = 2**30


class Room(NamedTuple):
    """What is free somewhere, in bytes."""

    where: str
    free: int
    of: int


class Population(NamedTuple):
    """What fits of a model, in members; none where the model itself does not fit."""

    model: str
    where: str
    at_a_time: int
    holds: int


def host_room() -> Room:
    """The host's memory."""
    return Room("host", *memory.host_memory())


def room_of(device: Any) -> Room | None:
    """An accelerator's own memory, as far as JAX may take it; None where the device has the host's."""
    own = memory.device_memory(device)
    return None if own is None else Room(f"{device.platform}:{device.id}", *own)


def populations(device: Any, parameters: int = 0) -> list[Population]:
    """What fits on a device, of models that need no data.

    Args:
      parameters: of a model of one's own, float32; 0: none.
    """
    hidden = f"{policy.LAYERS}×{policy.HIDDEN}"
    weights = jax.eval_shape(policy.policy_params)
    steps = jax.ShapeDtypeStruct((100,), jnp.float32)
    known = [
        _float_population(f"a {hidden} policy (float32, Adam)", weights, policy.rollout, steps, device),
        demo_population(device),
    ]
    return known + ([square_population(parameters, device)] if parameters else [])


def square_population(parameters: int, device: Any) -> Population:
    """What fits of three square layers with so many float32 parameters in all, one row of input a member."""
    width = max(math.isqrt(parameters // 3), 1)
    weights = {f"w{k}": jax.ShapeDtypeStruct((width, width), jnp.float32) for k in range(3)}

    def fitness(params: Any, key: Any, x: Any) -> Any:
        for k in range(3):
            x = jnp.tanh(x @ params[f"w{k}"])
        return x.sum()

    x, name = jax.ShapeDtypeStruct((1, width), jnp.float32), f"3 layers of {width}×{width} (float32, Adam)"
    return _float_population(name, weights, fitness, x, device)


def demo_population(device: Any) -> Population:
    """What fits of the demo of `eggroll pretrain`, whose members keep a state of int8."""
    config = preset("demo")
    state = config.layers * config.width
    # old state and new one, likelihood and its tally, the bytes that it reads
    each = 2 * state + 16 + -(-(config.seq_len + 1) // config.group_size)
    return Population(
        f"the demo of eggroll pretrain ({config.layers}×{config.width}, int8)",
        f"{device.platform}:{device.id}",
        2 * chunk_pairs(config),
        _even(min(_for_members(device) // each, MOST_INTEGER_MEMBERS)),
    )


def _float_population(name: str, weights: Any, fitness: Callable[..., Any], x: Any, device: Any) -> Population:
    where = f"{device.platform}:{device.id}"
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
    left = _for_members(device) - COPIES_OF_WEIGHTS * size
    holds = _even(min(left // BYTES_OF_MEMBER, MOST_MEMBERS))
    if not holds:
        return Population(name, where, 0, 0)
    with jax.default_device(device):
        probe = probe_bytes(weights, fitness, x)
    budget = memory.memory_budget(weights, device=device)
    at_a_time = 2 * memory.largest_chunk(_MANY_PAIRS, memory.PROBE_PAIRS, probe, budget)
    return Population(name, where, min(at_a_time, holds), holds)


def probe_bytes(weights: Any, fitness: Callable[..., Any], x: Any) -> int:
    """Working memory of `memory.PROBE_PAIRS` pairs, as chunk_size="auto" asks the compiler for it; nothing is run."""
    pairs = memory.PROBE_PAIRS
    setting = Setting(2 * pairs, 2 * pairs, pairs)
    evaluation = functools.partial(evaluate, fitness, make_plan(LowRank(), weights), setting=setting)

    def probe(weights: Any, x: Any, seed: Any, generation: Any, sigma: Any) -> Any:
        indices = jnp.arange(pairs, dtype=jnp.int32)
        return evaluation(weights, indices, (x,), seed=seed, generation=generation, sigma=sigma)

    counters = [jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((2,), "int32"), ((), "int32"), ((), "float32"))]
    return memory.working_bytes(probe, weights, x, *counters)


def _for_members(device: Any) -> int:
    """Bytes for what all members keep: the half of the free memory that a chunk does not take."""
    own = memory.device_memory(device) or memory.host_memory()
    return int((1 - memory.SHARE_OF_FREE) * own[0])


def _even(count: int) -> int:
    return max(int(np.floor(count)) // 2 * 2, 0)
