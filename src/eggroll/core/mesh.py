"""Devices: a mesh whose axis "members" shares out the population and whose axis "model" shares out parameters.

An update is made in one of three ways, with the same result:

- "redraw": every device draws all the noise and sums all pairs. No traffic.
- "reduce": every device sums its own pairs, and the sums are added up. Traffic: an all-reduce of the gradient.
- "rows": every device sums all pairs for its own block of each leaf, and draws for each pair only the rows of A and B
  that the block needs. Traffic: the blocks, where the parameters are wanted whole.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MEMBERS, MODEL = "members", "model"
WAYS = ("auto", "redraw", "reduce", "rows")
WORK_PER_BYTE = 64
"""Multiply-adds that a device does in the time in which a byte comes from another, in order of magnitude: on a server's
cores some 10, on GPUs joined by NVLink some 50, over a network hundreds to thousands."""
GRADIENT_BYTES = 8
"""An all-reduce sends and receives a float32 element about twice."""


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of `number` that is at most `limit`; at least 1."""
    return next(d for d in range(min(number, max(limit, 1)), 0, -1) if number % d == 0)


def device_mesh(members: int | None = None, model: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh for `EvolutionStrategy`, the same on every process of a run.

    Args:
      members: devices that share out the population; default all that `model` leaves.
      model: devices that share out each parameter, neighbours in the order of `devices`, ≥ 1.
      devices: default those of all processes, process by process.
    Returns:
      A mesh of axes "members" and "model", in this order.
    Raises:
      ValueError: there are not as many devices, or some of a run over several processes would be left out.
    """
    found = sorted(jax.devices(), key=lambda d: (d.process_index, d.id)) if devices is None else list(devices)
    members = max(len(found) // model, 1) if members is None and model > 0 else members
    if members is None or members < 1 or model < 1 or members * model > len(found):
        raise ValueError(
            f"expected members × model of at most {len(found)} devices, got {members} × {model}; "
            "give fewer, or start with more devices"
        )
    if devices is None and jax.process_count() > 1 and members * model < len(found):
        raise ValueError(
            f"expected a mesh of all {len(found)} devices of {jax.process_count()} processes, got {members} × {model}; "
            "leave members out, or start fewer processes"
        )
    return Mesh(np.array(found[: members * model]).reshape(members, model), (MEMBERS, MODEL))


def check_mesh(mesh: Mesh, pairs: int) -> None:
    """Refuse a mesh that a strategy cannot use.

    Raises:
      ValueError: its axes are others than "members" and "model", or `pairs` does not divide over "members".
    """
    if MEMBERS not in mesh.axis_names or not set(mesh.axis_names) <= {MEMBERS, MODEL}:
        raise ValueError(
            f'expected a mesh with an axis "{MEMBERS}" and at most one other, "{MODEL}", got '
            f"{', '.join(map(str, mesh.axis_names)) or 'none'}; eggroll.device_mesh makes one"
        )
    if any(kind != AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"expected a mesh whose axes are of type Auto, got {', '.join(kind.name for kind in mesh.axis_types)}; "
            "eggroll.device_mesh makes one"
        )
    if pairs % mesh.shape[MEMBERS]:
        size = mesh.shape[MEMBERS]
        works = largest_divisor(pairs, size - 1)
        raise ValueError(
            f'expected population_size / 2 = {pairs} to divide over {size} devices on the axis "{MEMBERS}", got a '
            f"remainder of {pairs % size}; use {works} devices or population_size={2 * size * -(-pairs // size)}"
        )


def check_way(update: str) -> None:
    """Refuse an unknown way to update.

    Raises:
      ValueError: it is none of `WAYS`.
    """
    if update not in WAYS:
        raise ValueError(f"expected update among {', '.join(WAYS)}, got {update!r}; choose auto")


def choose_update(
    update: str, *, pairs: int, rank: int, devices: int, sharded: bool, traffic: int = GRADIENT_BYTES
) -> str:
    """What "auto" comes to; another `update` is returned as it is.

    "rows" where a leaf is sharded over "model", since no device may then hold it whole. Otherwise "reduce" saves each
    device `pairs · rank · (1 − 1/devices)` multiply-adds an element and costs `traffic` bytes an element: it is taken
    where that is more than `WORK_PER_BYTE` a byte, and "redraw" elsewhere.

    Args:
      pairs, rank: of the population and its perturbations.
      devices: that share the work.
      sharded: whether a leaf lies sharded over the axis "model".
      traffic: bytes that "reduce" sends and receives for each element.
    """
    if update != "auto":
        return update
    if sharded:
        return "rows"
    saved = pairs * max(rank, 1) * (1 - 1 / devices)
    return "reduce" if saved > WORK_PER_BYTE * traffic else "redraw"


def spec_of(mesh: Mesh, value: Any) -> PartitionSpec | None:
    """How an array lies on the mesh, without trailing None; None where it does not lie on it or is not known yet."""
    if not isinstance(value, jax.Array) or isinstance(value, jax.core.Tracer):
        return None
    own = value.sharding
    return trimmed(own.spec) if isinstance(own, NamedSharding) and own.mesh == mesh else None


def trimmed(spec: Iterable[Any]) -> PartitionSpec:
    """The same layout, written in one way: equal layouts must not compile twice."""
    parts = [part[0] if isinstance(part, tuple) and len(part) == 1 else part or None for part in spec]
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


def axes_of(part: Any) -> tuple[str, ...]:
    """The mesh axes in one entry of a PartitionSpec."""
    return () if part is None else part if isinstance(part, tuple) else (part,)


def place(mesh: Mesh, value: Any, spec: PartitionSpec) -> Any:
    """Put an array on the mesh; one that lies there so is returned as it is.

    In a run over several processes each gives the whole array, all the same.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    wanted = NamedSharding(mesh, spec)
    return value if isinstance(value, jax.Array) and value.sharding == wanted else jax.device_put(value, wanted)


def constrain(mesh: Mesh, value: Any, spec: PartitionSpec) -> Any:
    """`jax.lax.with_sharding_constraint` of one array."""
    return jax.lax.with_sharding_constraint(value, NamedSharding(mesh, spec))


def gathered(mesh: Mesh, tree: Any) -> Any:
    """The same arrays, whole on every device, brought over one leaf after the other."""
    return jax.tree.map(_gather(mesh), tree)


@functools.lru_cache(maxsize=8)
def _gather(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


def local_copy(tree: Any) -> Any:
    """Replicated arrays on the first device of this process alone: what is computed from them is computed once."""

    def own(x: Any) -> Any:
        held = x.addressable_data(0) if isinstance(x, jax.Array) and x.is_fully_replicated else x
        return jax.device_put(held, jax.local_devices()[0])

    return jax.tree.map(own, tree)


def spans_processes(mesh: Mesh) -> bool:
    """Whether some of the mesh's devices belong to another process."""
    return any(device.process_index != jax.process_index() for device in mesh.devices.flat)


def agreed(mesh: Mesh | None, number: int) -> int:
    """The least of a number that each process found for itself: all must compile the same program."""
    if mesh is None or not spans_processes(mesh):
        return number
    return int(np.min(multihost_utils.process_allgather(np.int32(number))))


def block_spec(mesh: Mesh, shape: tuple[int, ...], order: Sequence[int], spec: PartitionSpec) -> PartitionSpec:
    """How "rows" cuts a leaf: as it lies, and further along every mesh axis not used yet that divides a leaf axis.

    Args:
      order: the leaf's axes, those to cut first in front.
      spec: how the leaf lies.
    """
    parts = [axes_of(part) for part in spec] + [()] * (len(shape) - len(spec))
    for axis in (MEMBERS, MODEL):
        if axis not in mesh.axis_names or any(axis in part for part in parts):
            continue
        for at in order:
            pieces = math.prod(mesh.shape[name] for name in parts[at]) * mesh.shape[axis]
            if shape[at] and shape[at] % pieces == 0:
                parts[at] = (*parts[at], axis)
                break
    return trimmed([part or None for part in parts])
