"""How the arrays of a state lie on a mesh: read from the arrays themselves, kept by every step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from eggroll.core.distribution import leaf_paths
from eggroll.core.mesh import MEMBERS, axes_of, constrain, place, spec_of
from eggroll.core.optimise import strong
from eggroll.core.population import Setting, check_axes
from eggroll.core.sharded import SHARED, WHOLE, groups_of_device, place_arguments
from eggroll.core.state import State


class Layout(NamedTuple):
    """One spec for each leaf of a state; seed and generation are whole on every device."""

    params: tuple[PartitionSpec, ...]
    opt_state: tuple[PartitionSpec, ...]

    def of_leaf(self, index: int, number: int, opt_states: Sequence[Any]) -> Layout:
        """That of one parameter and of its optimiser state, where each trainable leaf has one.

        Args:
          index: of the parameter among all leaves.
          number: of it among the trainable ones.
        """
        counts = [len(jax.tree.leaves(own)) for own in opt_states]
        first = sum(counts[:number])
        return Layout((self.params[index],), self.opt_state[first : first + counts[number]])

    def is_sharded(self, mesh: Mesh) -> bool:
        """Whether some parameter lies in parts on different devices."""
        return any(mesh.shape[name] > 1 for spec in self.params for part in spec for name in axes_of(part))


def start_layout(mesh: Mesh, params: Any, opt_state: Any) -> Layout:
    """That of a run's start: parameters as they lie, others whole; the optimiser's arrays like their parameters.

    Args:
      opt_state: arrays or their shapes. One whose path ends in a parameter's path, with the same shape, belongs to it.
    Raises:
      ValueError: a parameter is sharded over "members".
    """
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    specs = tuple(spec_of(mesh, leaf) or WHOLE for leaf in leaves)
    for path, spec in zip(paths, specs, strict=True):
        if any(MEMBERS in axes_of(part) for part in spec):
            raise ValueError(
                f'expected leaf {path!r} whole or sharded over "model", got {spec}; members are evaluated on every '
                f'device of the axis "{MEMBERS}", which needs the parameters there'
            )
    owners = list(zip(paths, map(np.shape, leaves), specs, strict=True))
    states = zip(leaf_paths(opt_state), jax.tree.leaves(opt_state), strict=True)
    return Layout(specs, tuple(_owned(path, tuple(leaf.shape), owners) for path, leaf in states))


def _owned(path: str, shape: tuple[int, ...], owners: Sequence[tuple[str, tuple[int, ...], PartitionSpec]]) -> Any:
    """The spec of the parameter whose path is the longest end of this one."""
    fitting = [(len(own), spec) for own, of, spec in owners if of == shape and f"/{path}".endswith(f"/{own}")]
    return max(fitting, key=lambda each: each[0])[1] if fitting else WHOLE


class Placement:
    """Where a strategy's arrays lie. Without a mesh everything stays where it is, and every layout is None."""

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self._homes: dict[Any, Layout] = {}

    @property
    def shares(self) -> int:
        """Into how many the population is shared out."""
        return 1 if self.mesh is None else self.mesh.shape[MEMBERS]

    @property
    def neighbours(self) -> int:
        """Devices of this process that work side by side."""
        return 1 if self.mesh is None else len(self.mesh.local_devices)

    def start(self, params: Any, shapes_of: Callable[[], State]) -> tuple[Any, Layout | None]:
        """Put start parameters on the mesh, those that lie on it as they lie.

        Args:
          shapes_of: tells the shapes of the state that is to start with them.
        Raises:
          ValueError: as `start_layout` says.
        """
        if self.mesh is None:
            return params, None
        shapes = shapes_of()
        layout = start_layout(self.mesh, params, shapes.opt_state)
        self._homes[jax.tree.structure(shapes)] = layout
        leaves, tree = jax.tree.flatten(params)
        placed = [place(self.mesh, strong(x), spec) for x, spec in zip(leaves, layout.params, strict=True)]
        return jax.tree.unflatten(tree, placed), layout

    def state(self, state: State) -> tuple[State, Layout | None]:
        """A state on the mesh, and how it lies there.

        Arrays that lie there already are kept; others (as after loading) go where the start had them, or whole.
        """
        if self.mesh is None:
            return state, None
        layout = _layout_of(self.mesh, state, self._homes.get(jax.tree.structure(state)))
        return _over(place, self.mesh, state, layout), layout

    def keep(self, state: State, layout: Layout | None) -> State:
        """Inside `jax.jit`, have a result lie as the layout says."""
        return state if self.mesh is None or layout is None else _over(constrain, self.mesh, state, layout)

    def inputs(self, args: tuple[Any, ...], carry: Any, setting: Setting) -> tuple[tuple[Any, ...], Any]:
        """Arguments and carry of fitness, of which a device holds just what its own members need.

        Raises:
          ValueError: as `population.evaluate` says of the axes of groups and members.
        """
        if self.mesh is None:
            return args, carry
        check_axes(args, carry, setting.population_size // setting.group_size, setting.population_size)
        args = place_arguments(self.mesh, args, groups_of_device(self.mesh, setting, setting.population_size))
        return args, jax.tree.map(functools.partial(place, self.mesh, spec=SHARED), carry)


def _layout_of(mesh: Mesh, state: State, home: Layout | None) -> Layout:
    def specs(tree: Any, own: Sequence[PartitionSpec] | None) -> tuple[PartitionSpec, ...]:
        leaves = jax.tree.leaves(tree)
        known = [spec_of(mesh, leaf) for leaf in leaves]
        default = own if own is not None and len(own) == len(leaves) else (WHOLE,) * len(leaves)
        return tuple(other if spec is None else spec for spec, other in zip(known, default, strict=True))

    return Layout(
        specs(state.params, None if home is None else home.params),
        specs(state.opt_state, None if home is None else home.opt_state),
    )


def _over(function: Any, mesh: Mesh, state: State, layout: Layout) -> State:
    def each(tree: Any, specs: Sequence[PartitionSpec]) -> Any:
        leaves, structure = jax.tree.flatten(tree)
        moved = [function(mesh, leaf, spec) for leaf, spec in zip(leaves, specs, strict=True)]
        return jax.tree.unflatten(structure, moved)

    whole = (function(mesh, value, WHOLE) for value in (state.seed, state.generation))
    return State(each(state.params, layout.params), each(state.opt_state, layout.opt_state), *whole)
