"""The devices of a pretraining run: speed and memory depend on them, no result does."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from eggroll.core.errors import UsageError
from eggroll.core.mesh import device_mesh, gathered, largest_divisor, local_copy, place, spans_processes
from eggroll.integer.model import zero_state
from eggroll.pretrain.config import PretrainConfig
from eggroll.runs.job import RunState


def mesh_of(config: PretrainConfig) -> Mesh | None:
    """The mesh of a run, over the devices of all its processes; None where one device does everything.

    Raises:
      UsageError: there are not as many devices, or the pairs do not divide over those of several processes.
    """
    if config.is_fleet:
        return None  # its workers are the devices
    pairs, present, processes = config.population_size // 2, jax.device_count(), jax.process_count()
    if config.devices != "auto" and config.devices > present:
        raise UsageError(
            f"expected --devices of at most {present}, got {config.devices}; --devices auto takes what there is"
        )
    number = largest_divisor(pairs, present) if config.devices == "auto" else config.devices
    if processes > 1 and number < present:
        raise UsageError(
            f"expected a --population-size of a multiple of {2 * present}, for {present} devices of {processes} "
            f"processes, got {config.population_size} on {number} devices; use {2 * present * -(-pairs // present)} "
            "and --devices auto"
        )
    return None if number == 1 else device_mesh(number)


def carry_sharding(mesh: Mesh) -> NamedSharding:
    """How members' states (layers, 2, pairs, width) lie: each device has those of its pairs."""
    return NamedSharding(mesh, PartitionSpec(None, None, tuple(mesh.axis_names)))


def start_carry(config: PretrainConfig, mesh: Mesh | None) -> Any:
    """The members' states at generation 0, made where they belong."""
    pairs = config.population_size // 2
    if mesh is None:
        return zero_state(config.model(), 2, pairs)
    return jax.jit(lambda: zero_state(config.model(), 2, pairs), out_shardings=carry_sharding(mesh))()


def on_mesh(mesh: Mesh | None, parameters: Any) -> Any:
    """Parameters whole on every device; kept where they are so already."""
    return parameters if mesh is None else jax.tree.map(lambda x: place(mesh, x, PartitionSpec()), parameters)


def on_one(mesh: Mesh | None, parameters: Any) -> Any:
    """Parameters on one device of this process, for what only one is to compute."""
    return parameters if mesh is None else local_copy(parameters)


def gather(mesh: Mesh, state: RunState) -> RunState:
    """The state with all members' states in this process."""
    return state._replace(carry=gathered(mesh, state.carry)) if spans_processes(mesh) else state
