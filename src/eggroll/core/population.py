"""Evaluate members: chunks of pairs one after the other, and in a chunk two nested `vmap`s.

The outer `vmap` runs over pairs and gives each its factors, the inner one over the two signs of a pair, so
that noise is drawn once for a pair and the shared weights meet all members in one product. `evaluate` is a
pure function of the parameters, the generation and the pair indices: whoever holds some of the pairs
evaluates just these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from eggroll.core.distribution import Plan
from eggroll.core.draws import draw_noise, perturb
from eggroll.core.lowrank import apply_perturbed
from eggroll.core.state import seed_words


@functools.partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=())
@dataclass(frozen=True)
class PerGroup:
    """An argument of which the members of group g get the part `value[g]`; made by `per_group`."""

    value: Any


def per_group(value: Any) -> PerGroup:
    """Mark an argument of `step`: its leaves have a leading axis of groups, and a member gets its own group's
    part.

    Args:
      value: pytree of arrays (groups, …), where groups = population_size / group_size.
    """
    return PerGroup(value)


class Setting(NamedTuple):
    """The static sizes of an evaluation, all in members but for `chunk_pairs`."""

    population_size: int
    group_size: int
    chunk_pairs: int


class Evaluation(NamedTuple):
    """What the members of some pairs gave; every leaf has a leading axis of members, 2p before 2p+1."""

    fitness: Array  # (members,) float32
    carry: Any  # None unless a carry was passed
    aux: Any  # None unless has_aux


def generation_key(seed: Int[Array, " 2"], generation: Int[Array, ""]) -> Key[Array, ""]:
    """The random key of a generation, from the two seed words; always Threefry, whatever JAX's default is."""
    words = jax.lax.bitcast_convert_type(seed, jnp.uint32)
    return jax.random.fold_in(jax.random.wrap_key_data(words, impl="threefry2x32"), generation)


def key_of(seed: int, purpose: int) -> Key[Array, ""]:
    """A random key of a run for one purpose of its own; no generation's.

    Args:
      seed: of the run, in [0, 2⁶⁴).
      purpose: at least 0.
    """
    return jax.random.fold_in(generation_key(seed_words(seed), jnp.int32(-1)), purpose)


def evaluate(
    fitness: Callable[..., Any],
    plan: Plan,
    params: Any,
    pairs: Int[Array, " pairs"],
    args: tuple[Any, ...],
    *,
    seed: Int[Array, " 2"],
    generation: Int[Array, ""],
    sigma: Float[Array, ""],
    setting: Setting,
    noise_generation: Int[Array, ""] | None = None,
    carry: Any = None,
    has_aux: bool = False,
    groups_held: int | None = None,
) -> Evaluation:
    """Evaluate both members of each pair.

    Args:
      fitness: `fitness(params, key, *args)`, or `fitness(params, key, carry, *args)` with a carry, for one
        member; it returns a scalar, higher is better, or (fitness, carry, aux) leaving out what is unused.
      plan: from `distribution.make_plan`.
      params: the mean.
      pairs: (pairs,) int32, indices in the whole population.
      args: for every member alike, or inside `per_group`.
      seed: (2,) int32 words.
      generation: int32 scalar.
      sigma: float32 scalar, in weight units.
      setting: the sizes.
      noise_generation: int32 scalar, the generation whose noise is drawn; default `generation`.
      carry: pytree with a leading axis of 2·pairs members on every leaf, or None.
      has_aux: whether fitness returns something of its own to report.
      groups_held: how many groups `per_group` holds, where these are only those of `pairs`, in order; default all.
    Raises:
      ValueError: fitness does not return a scalar number or what was announced; a group or carry axis is
        wrong.
    """
    groups, group_pairs = setting.population_size // setting.group_size, setting.group_size // 2
    held, first = (groups, jnp.int32(0)) if groups_held is None else (groups_held, pairs[0] // group_pairs)
    check_axes(args, carry, held, 2 * pairs.shape[0])
    noise_generation = generation if noise_generation is None else noise_generation
    call = functools.partial(_checked, fitness, carry is not None, has_aux)
    key = generation_key(seed, generation)
    signs = jnp.array([1, -1], jnp.float32)

    def pair(drawn: Any, group: Array, carries: Any) -> Evaluation:
        own_key, own_args = jax.random.fold_in(key, group), _select(args, group - first)

        def member(sign: Array, own_carry: Any) -> Evaluation:
            moved = perturb(plan, params, drawn, sign * sigma)
            return Evaluation(*apply_perturbed(call, moved, own_key, own_carry, own_args))

        return jax.vmap(member)(signs, carries)

    def chunk(part: tuple[Array, Any]) -> Evaluation:
        indices, carries = part
        drawn = draw_noise(plan, seed=seed, generation=noise_generation, pairs=indices)
        if held == 1:  # nothing depends on the pair but its noise: what comes before the first weight is shared
            return jax.vmap(pair, in_axes=(0, None, 0))(drawn, first, carries)
        return jax.vmap(pair)(drawn, indices // group_pairs, carries)

    by_pair = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), carry)
    result = in_chunks(chunk, (pairs, by_pair), pairs.shape[0], setting.chunk_pairs)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), result)


def in_chunks(function: Callable[[Any], Any], items: Any, count: int, size: int) -> Any:
    """`function` on `size` items at a time; the last chunk is filled with copies of the last item."""
    if size >= count:
        return function(items)
    chunks = -(-count // size)

    def parted(x: Array) -> Array:
        missing = chunks * size - count
        filled = jnp.concatenate([x, jnp.repeat(x[-1:], missing, axis=0)]) if missing else x
        return filled.reshape(chunks, size, *x.shape[1:])

    parts = jax.tree.map(parted, items)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], jax.lax.map(function, parts))


def is_per_group(value: Any) -> bool:
    return isinstance(value, PerGroup)


def _select(args: tuple[Any, ...], group: Array) -> tuple[Any, ...]:
    """The arguments of one group."""

    def pick(value: Any) -> Any:
        return jax.tree.map(lambda x: x[group], value.value) if is_per_group(value) else value

    return jax.tree.map(pick, args, is_leaf=is_per_group)


def check_axes(args: tuple[Any, ...], carry: Any, groups: int, members: int) -> None:
    for value in jax.tree.leaves(args, is_leaf=is_per_group):
        for leaf in jax.tree.leaves(value.value) if is_per_group(value) else ():
            if jnp.shape(leaf)[:1] != (groups,):
                raise ValueError(
                    f"expected a leading axis of {groups} groups in per_group, got shape {jnp.shape(leaf)}; "
                    "stack one part for each group, or change group_size"
                )
    for leaf in jax.tree.leaves(carry):
        if jnp.shape(leaf)[:1] != (members,):
            raise ValueError(
                f"expected a leading axis of {members} members in carry, got shape {jnp.shape(leaf)}; "
                "stack one part for each member"
            )


def _checked(
    fitness: Callable[..., Any], has_carry: bool, has_aux: bool, params: Any, key: Any, carry: Any, args: Any
) -> tuple[Any, Any, Any]:
    """Call the user's function and check what it returned: (float32 scalar, carry or None, aux or None)."""
    result = fitness(params, key, *([carry] if has_carry else []), *args)
    names = ["fitness", *(["carry"] if has_carry else []), *(["aux"] if has_aux else [])]
    values = result if len(names) > 1 else (result,)
    if not isinstance(values, tuple) or len(values) != len(names):
        raise ValueError(
            f"expected fitness to return ({', '.join(names)}), got {_describe(result)}; return a tuple of these"
        )
    named = dict(zip(names, values, strict=True))
    if not _is_scalar_number(named["fitness"]):
        raise ValueError(
            f"expected fitness to return a scalar number, got {_describe(named['fitness'])}; reduce it to "
            "one number, "
            "and announce anything else with carry=… or has_aux=True"
        )
    if has_carry and _shapes(named["carry"]) != _shapes(carry):
        raise ValueError(
            f"expected fitness to return a carry like the one it got, {_shapes(carry)[1]}, got "
            f"{_shapes(named['carry'])[1]}; keep its structure, shapes and dtypes"
        )
    return jnp.asarray(named["fitness"], jnp.float32), named.get("carry"), named.get("aux")


def _is_scalar_number(value: Any) -> bool:
    if not isinstance(value, bool | int | float) and not hasattr(value, "dtype"):
        return False
    real = any(jnp.issubdtype(jnp.result_type(value), kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    return real and jnp.shape(value) == ()


def _shapes(tree: Any) -> tuple[Any, list[str]]:
    return jax.tree.structure(tree), [_describe(leaf) for leaf in jax.tree.leaves(tree)]


def _describe(value: Any) -> str:
    if not hasattr(value, "dtype"):
        return f"a {type(value).__name__}"
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"
