"""Fitness shaping: pure functions from raw scores to utilities, higher is better throughout.

Every function repairs its scores first: NaN counts as the worst of the finite scores it is compared with, and
±inf as the finite extreme on its side. Scores that are all equal give utilities of zero, never NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Shaping = Callable[[Array], Array]
"""Raw scores, (members,) or (members, prompts), to float32 utilities (members,)."""


def count_nan(scores: Float[Array, "members ..."]) -> Int[Array, ""]:
    """How many of the scores are NaN; an int32 scalar."""
    return jnp.isnan(scores).sum(dtype=jnp.int32)


def repair(scores: Float[Array, "members ..."]) -> Float[Array, "members ..."]:
    """Replace NaN and −inf by the worst finite score over the members, +inf by the best; zeros if none is."""
    finite = jnp.isfinite(scores)
    low = jnp.where(finite, scores, jnp.inf).min(0, keepdims=True)
    high = jnp.where(finite, scores, -jnp.inf).max(0, keepdims=True)
    clipped = jnp.clip(jnp.where(jnp.isnan(scores), low, scores), low, high)
    return jnp.where(finite.any(0, keepdims=True), clipped, 0.0)


def _to_unit(scores: Array) -> Array:
    """Shift and scale into [0, 1] without overflow; zeros where all are equal."""
    shifted = scores * 0.5 - scores.min() * 0.5
    spread = shifted.max()
    return jnp.where(spread > 0, shifted / jnp.where(spread > 0, spread, 1.0), 0.0)


def _divide_by_deviation(centred: Array, values: Array) -> Array:
    deviation = values.std()
    return jnp.where(deviation > 0, centred / jnp.where(deviation > 0, deviation, 1.0), 0.0)


def z_score(scores: Float[Array, " members"]) -> Float[Array, " members"]:
    """`(f − mean) / standard deviation` over the population.

    Args:
      scores: (members,) float; raw fitness.
    Returns:
      (members,) float32 of mean 0 and variance 1; zeros where all scores are equal.
    """
    unit = _to_unit(repair(scores.astype(jnp.float32)))
    return _divide_by_deviation(unit - unit.mean(), unit)


def centred_rank(scores: Float[Array, " members"]) -> Float[Array, " members"]:
    """The rank of each score, scaled into [−0.5, 0.5]; ties share their mean rank.

    Args:
      scores: (members,) float; raw fitness, at least two.
    Returns:
      (members,) float32 of mean 0.
    Source: Salimans et al., arXiv 1703.03864, section 2.1.
    """
    repaired = repair(scores.astype(jnp.float32))
    order = jnp.sort(repaired)
    below = jnp.searchsorted(order, repaired, side="left")
    upto = jnp.searchsorted(order, repaired, side="right")
    return (below + upto - 1).astype(jnp.float32) / (2 * (scores.shape[0] - 1)) - 0.5


def group_z_score(group_size: int) -> Shaping:
    """Make the shaping that takes the z-score inside each group of `group_size` consecutive members.

    Raises:
      ValueError: the group size is below 2, or does not divide the number of scores (when called).
    """
    if group_size < 2:
        raise ValueError(f"expected group_size ≥ 2, got {group_size}; choose an even divisor of the population size")

    def shape(scores: Float[Array, " members"]) -> Float[Array, " members"]:
        if scores.shape[0] % group_size:
            raise ValueError(
                f"expected a group_size that divides the {scores.shape[0]} members, got {group_size}; choose a divisor"
            )
        return jax.vmap(z_score)(scores.reshape(-1, group_size)).reshape(-1)

    return shape


def per_prompt(scores: Float[Array, " members *prompts"]) -> Float[Array, " members"]:
    """Subtract each prompt's mean over members, divide by the global deviation, and average over prompts.

    Args:
      scores: (members, prompts) float; (members,) counts as one prompt.
    Returns:
      (members,) float32 of mean 0; zeros where every prompt gives all members the same score.
    Source: arXiv 2511.16652, reasoning experiments.
    """
    scores = scores.astype(jnp.float32).reshape(scores.shape[0], -1)
    unit = _to_unit(repair(scores))
    equal = (unit == unit[:1]).all(0)
    centred = jnp.where(equal[None, :], 0.0, unit - unit.mean(0, keepdims=True))
    return _divide_by_deviation(centred, unit).mean(1)


def antithetic_sign(scores: Float[Array, " members"]) -> Float[Array, " members"]:
    """Ternary: member 2p gets `sign(f₂ₚ − f₂ₚ₊₁)` and member 2p+1 minus that.

    Args:
      scores: (members,) float; an even number.
    Returns:
      (members,) float32 in {−1, 0, 1}.
    """
    pairs = repair(scores.astype(jnp.float32)).reshape(-1, 2)
    sign = (pairs[:, 0] > pairs[:, 1]).astype(jnp.float32) - (pairs[:, 0] < pairs[:, 1])
    return jnp.stack([sign, -sign], axis=1).reshape(-1)


def shape_by_name(name: str, group_size: int | None = None) -> Shaping:
    """The shaping of that name.

    Args:
      name: "z_score", "centred_rank", "group_z_score", "per_prompt" or "antithetic_sign".
      group_size: members in a group; needed by "group_z_score" alone.
    Raises:
      ValueError: there is no such shaping, or the group size is missing.
    """
    shapings: dict[str, Shaping] = {
        "z_score": z_score,
        "centred_rank": centred_rank,
        "per_prompt": per_prompt,
        "antithetic_sign": antithetic_sign,
    }
    if name == "group_z_score":
        if group_size is None:
            raise ValueError("expected a group_size for the shaping 'group_z_score', got None; pass group_size=…")
        return group_z_score(group_size)
    if name not in shapings:
        names = ", ".join([*shapings, "group_z_score"])
        raise ValueError(f"expected a shaping among {names}, got {name!r}; choose one of these or pass a function")
    return shapings[name]
