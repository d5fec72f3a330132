"""Fitness shaping: pure functions from raw scores to utilities, higher is better throughout.

NaN is strictly worse than any other score it is compared with: in ranks and pairs it loses, and in z-scores it
stands one standard deviation of the others below the worst of them, or 1 below where they are all equal. ±inf
counts as the finite extreme on its side. Scores that are all equal, NaN or not, give utilities of zero.
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


def clip_infinities(scores: Float[Array, "members ..."]) -> Float[Array, "members ..."]:
    """Replace ±inf by the finite extreme on its side over the members; NaN stays.

    Where a prompt has no finite score, its infinities all become the worst finite score there is, or 0.
    """
    finite = jnp.isfinite(scores)
    low = jnp.where(finite, scores, jnp.inf).min(0, keepdims=True)
    high = jnp.where(finite, scores, -jnp.inf).max(0, keepdims=True)
    some, worst = finite.any(0, keepdims=True), low.min()
    worst = jnp.where(jnp.isfinite(worst), worst, 0.0)
    return jnp.clip(scores, jnp.where(some, low, worst), jnp.where(some, high, worst))


def _to_unit(scores: Array) -> Array:
    """Shift and scale (members, prompts) into [0, 1] without overflow, zeros where all are equal; NaN goes below."""
    known = ~jnp.isnan(scores)
    small = scores * 0.125  # the reciprocal of a spread beyond 2¹²⁶ would be flushed to zero
    shifted = jnp.where(known, small - jnp.where(known, small, jnp.inf).min(), 0.0)
    spread = shifted.max()
    unit = jnp.where(spread > 0, shifted / jnp.where(spread > 0, spread, 1.0), 0.0)
    deviation = jnp.where(spread > 0, unit.std(where=known), 1.0)
    return jnp.where(known, unit, jnp.where(known, unit, jnp.inf).min(0, keepdims=True) - deviation)


def z_score(scores: Float[Array, " members"]) -> Float[Array, " members"]:
    """`(f − mean) / standard deviation` over the population.

    Args:
      scores: (members,) float; raw fitness.
    Returns:
      (members,) float32 of mean 0 and variance 1; zeros where all scores are equal.
    """
    return per_prompt(scores)


def _nan_below(scores: Array) -> Array:
    """Values to compare: NaN is −inf, and nothing else is."""
    values = clip_infinities(scores.astype(jnp.float32))
    return jnp.where(jnp.isnan(values), -jnp.inf, values)


def centred_rank(scores: Float[Array, " members"]) -> Float[Array, " members"]:
    """The rank of each score, scaled into [−0.5, 0.5]; ties share their mean rank.

    Args:
      scores: (members,) float; raw fitness, at least two.
    Returns:
      (members,) float32 of mean 0.
    Source: Salimans et al., arXiv 1703.03864, section 2.1.
    """
    values = _nan_below(scores)
    order = jnp.sort(values)
    below = jnp.searchsorted(order, values, side="left")
    upto = jnp.searchsorted(order, values, side="right")
    return (below + upto - 1).astype(jnp.float32) / (2 * (scores.shape[0] - 1)) - 0.5


def group_z_score(group_size: int) -> Shaping:
    """Make the shaping that takes the z-score inside each group of `group_size` consecutive members.

    Raises:
      ValueError: the group size is below 2, or does not divide the number of scores (when called).
    """
    _check_group_size(group_size)

    def shape(scores: Float[Array, " members"]) -> Float[Array, " members"]:
        _check_divides(group_size, scores)
        return jax.vmap(z_score)(scores.reshape(-1, group_size)).reshape(-1)

    return shape


def _check_group_size(group_size: int) -> None:
    if group_size < 2:
        raise ValueError(f"expected group_size ≥ 2, got {group_size}; choose an even divisor of the population size")


def _check_divides(group_size: int, scores: Array) -> None:
    if scores.shape[0] % group_size:
        raise ValueError(
            f"expected a group_size that divides the {scores.shape[0]} members, got {group_size}; choose a divisor"
        )


def per_prompt(scores: Float[Array, " members *prompts"]) -> Float[Array, " members"]:
    """Subtract each prompt's mean over members, divide by the global deviation, and average over prompts.

    A prompt that is NaN for every member is left out of deviation and average.

    Args:
      scores: (members, prompts) float; (members,) counts as one prompt.
    Returns:
      (members,) float32 of mean 0; zeros where every prompt gives all members the same score.
    Source: arXiv 2511.16652, reasoning experiments.
    """
    scaled, counts = _scaled_by_prompt(scores.astype(jnp.float32).reshape(scores.shape[0], -1))
    return scaled.sum(1) / jnp.maximum(counts.sum(), 1)


def _scaled_by_prompt(scores: Float[Array, "members prompts"]) -> tuple[Array, Array]:
    """Scores of each prompt around its mean in units of the deviation of all, and (prompts,) which counted."""
    scores = clip_infinities(scores)
    counts = ~jnp.isnan(scores).all(0, keepdims=True)
    unit = jnp.where(counts, _to_unit(scores), 0.0)
    equal = (unit == unit[:1]).all(0, keepdims=True)
    centred = jnp.where(equal, 0.0, unit - unit.mean(0, keepdims=True))
    deviation = unit.std(where=counts)
    return jnp.where(deviation > 0, centred / jnp.where(deviation > 0, deviation, 1.0), 0.0), counts[0]


def group_per_prompt(group_size: int) -> Shaping:
    """Make the shaping `per_prompt` where each group of `group_size` consecutive members has prompts of its own.

    A prompt's mean is over the members of its group, the deviation over all scores; with one group it is `per_prompt`.

    Raises:
      ValueError: the group size is below 2, or does not divide the number of members (when called).
    """
    _check_group_size(group_size)

    def shape(scores: Float[Array, " members *prompts"]) -> Float[Array, " members"]:
        _check_divides(group_size, scores)
        groups = scores.shape[0] // group_size
        parts = scores.astype(jnp.float32).reshape(groups, group_size, -1)
        scaled, counts = _scaled_by_prompt(parts.swapaxes(0, 1).reshape(group_size, -1))
        total = scaled.reshape(group_size, groups, -1).sum(-1)
        return (total / jnp.maximum(counts.reshape(groups, -1).sum(-1), 1)[None]).T.reshape(-1)

    shape.__name__ = "group_per_prompt"  # as a journal's header has it
    return shape


def antithetic_sign(scores: Float[Array, " members"]) -> Float[Array, " members"]:
    """Ternary: member 2p gets `sign(f₂ₚ − f₂ₚ₊₁)` and member 2p+1 minus that.

    Args:
      scores: (members,) float; an even number.
    Returns:
      (members,) float32 in {−1, 0, 1}; the member whose score is NaN loses, and two NaN give 0.
    """
    pairs = _nan_below(scores).reshape(-1, 2)
    sign = (pairs[:, 0] > pairs[:, 1]).astype(jnp.float32) - (pairs[:, 0] < pairs[:, 1])
    return jnp.stack([sign, -sign], axis=1).reshape(-1)


def shape_by_name(name: str, group_size: int | None = None) -> Shaping:
    """The shaping of that name.

    Args:
      name: "z_score", "centred_rank", "group_z_score", "per_prompt", "group_per_prompt" or "antithetic_sign".
      group_size: members in a group; needed by the two of groups alone.
    Raises:
      ValueError: there is no such shaping, or the group size is missing.
    """
    shapings: dict[str, Shaping] = {
        "z_score": z_score,
        "centred_rank": centred_rank,
        "per_prompt": per_prompt,
        "antithetic_sign": antithetic_sign,
    }
    by_group = {"group_z_score": group_z_score, "group_per_prompt": group_per_prompt}
    if name in by_group:
        if group_size is None:
            raise ValueError(f"expected a group_size for the shaping {name!r}, got None; pass group_size=…")
        return by_group[name](group_size)
    if name not in shapings:
        names = ", ".join([*shapings, *by_group])
        raise ValueError(f"expected a shaping among {names}, got {name!r}; choose one of these or pass a function")
    return shapings[name]
