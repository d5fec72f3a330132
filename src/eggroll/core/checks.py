"""What a strategy refuses before it computes: bad settings, an unknown parameter tree, noise that rounding swallows."""

from __future__ import annotations

import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from eggroll.core.distribution import Distribution, FullRank, LowRank, Plan, leaf_paths


class KnownTrees:
    """The parameter trees that `init` was called with; any tree will do before the first of them."""

    def __init__(self) -> None:
        self._known: list[tuple[Any, dict[str, str]]] = []

    def add(self, params: Any) -> None:
        found = _signature(params)
        self._known = [*(known for known in self._known if known[0] != found), (found, _describe_leaves(params))]

    def check(self, params: Any) -> None:
        """Refuse another tree.

        Raises:
          ValueError: structure, shapes or dtypes are those of no known tree; the nearest one is named.
        """
        found = _signature(params)
        if not self._known or any(signature == found for signature, _ in self._known):
            return
        now = _describe_leaves(params)
        (tree, _), before = max(reversed(self._known), key=lambda known: len(known[1].items() & now.items()))
        path = next((p for p in [*before, *now] if before.get(p) != now.get(p)), None)
        if path is not None:
            raise ValueError(
                f"expected the parameter tree of init, with leaf {path!r} {before.get(path, 'absent')}, "
                f"got {now.get(path, 'absent')}; call init again for a new tree"
            )
        if tree != found[0]:
            raise ValueError(
                f"expected the parameter tree of init, {_one_line(tree)}, got {_one_line(found[0])}; "
                "call init again for a new tree"
            )


def check_rounding(plan: Plan, params: Any, sigma: float) -> None:
    """Refuse elementwise noise that the dtype of its leaf rounds away, while the update would count it.

    Judged are leaves under 32 bits, by their largest value: `sigma` is to be at least half the distance to
    the next representable one. Values not yet known (under `jax.jit`) are not judged.

    Raises:
      ValueError: sigma is too small for a leaf.
    """
    for leaf, value in zip(plan, jax.tree.leaves(params), strict=True):
        if leaf.frozen or leaf.rank or leaf.dtype.itemsize >= 4 or isinstance(value, jax.core.Tracer):
            continue
        largest = float(jnp.abs(jnp.asarray(value).astype(jnp.float32)).max(initial=0))
        least = math.ldexp(float(jnp.finfo(leaf.dtype).eps), math.frexp(largest)[1] - 1) / 2
        if largest > 0 and sigma < least:
            raise ValueError(
                f"expected sigma ≥ {least:.3g} for the elementwise noise of the {leaf.dtype} leaf {leaf.path!r}, "
                f"got {sigma:.3g}, which its rounding swallows; keep it in float32, freeze it, or raise sigma"
            )


def check_updatable(plan: Plan) -> None:
    """Refuse leaves that no optimiser of optax moves.

    Raises:
      ValueError: a leaf is a lattice.
    """
    for leaf in plan:
        if not leaf.frozen and jnp.issubdtype(leaf.dtype, jnp.integer):
            raise ValueError(
                f"expected float leaves to update, got the lattice leaf {leaf.path!r} of {leaf.dtype}; evaluate and "
                "weigh its members, and update it yourself, as eggroll distill does"
            )


def even(name: str, value: int) -> int:
    """Refuse a number of members that is not even, at least 2 and below 2³¹."""
    count = _whole(name, value)
    if count < 2 or count % 2:
        raise ValueError(
            f"expected an even {name} ≥ 2, got {value}; members come in antithetic pairs, "
            f"choose {max(2, count // 2 * 2 + 2)}"
        )
    if count >= 2**31:
        raise ValueError(f"expected {name} below 2**31, got {value}; members are numbered in int32, choose fewer")
    return count


def _whole(name: str, value: Any) -> int:
    """Refuse what is no whole number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or int(value) != value:
        raise ValueError(f"expected {name} as a whole number, got {value!r}; give an int")
    return int(value)


def first_sigma(sigma: Any) -> float:
    """The perturbation's size at generation 0, in weight units.

    Raises:
      ValueError: it is no finite number above 0.
    """
    try:
        value = float(sigma(0) if callable(sigma) else sigma)
    except (TypeError, ValueError):
        raise ValueError(
            f"expected sigma as a number or an optax schedule, got {sigma!r}; 0.01 to 0.1 suits most models"
        ) from None
    if not value > 0 or value == math.inf:
        what = "a finite sigma" if value > 0 else "sigma > 0"
        raise ValueError(f"expected {what}, got {value}; 0.01 to 0.1 suits most models")
    return value


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no optax transformation, such as the name of one.

    Raises:
      ValueError: it has no `init` or no `update`.
    """
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise ValueError(f"expected an optax optimiser, got {optimizer!r}; such as optax.adam(0.01)")


def check_call(state: Any, fitness: Any, args: tuple[Any, ...], carry: Any) -> None:
    """Refuse what cannot be called as `fitness(params, key, *args)`, and a state that is none.

    Raises:
      ValueError: `state` is not what `init` returns, or `fitness` takes another number of arguments.
    """
    if not hasattr(state, "params"):
        raise ValueError(f"expected the state that init returns, got a {type(state).__name__}; state = es.init(params)")
    if not callable(fitness):
        raise ValueError(
            f"expected fitness as a function of (params, key, …), got a {type(fitness).__name__}; pass the function"
        )
    given = ["params", "key", *([] if carry is None else ["carry"]), *(f"argument {k + 1}" for k in range(len(args)))]
    try:
        signature = inspect.signature(fitness)
    except (TypeError, ValueError):  # written in C: it says by itself what is wrong
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        raise ValueError(
            f"expected fitness to take ({', '.join(given)}), got {signature}: {error}; give it these "
            "parameters, or step other arguments"
        ) from None


def as_scores(fitnesses: Any) -> Any:
    """Fitness from elsewhere as a float32 array.

    Raises:
      ValueError: there are no numbers in it.
    """
    try:
        return jnp.asarray(fitnesses, jnp.float32)
    except (TypeError, ValueError) as error:
        kind = " ".join(str(error).split())[:100]
        raise ValueError(f"expected one number for each member as fitnesses, got {kind}; pass an array") from None


def chunk_pairs_of(chunk_size: int | str, population_size: int) -> int | None:
    """Pairs of a chunk; None where they are to be found at the first step."""
    if chunk_size == "auto":
        return None
    if isinstance(chunk_size, str):
        raise ValueError(f'expected an even chunk_size or "auto", got {chunk_size!r}; "auto" takes what fits')
    return min(even("chunk_size", chunk_size), population_size) // 2


def choose_distribution(rank: int | None, law: str | None, distribution: Distribution | None) -> Distribution:
    """The distribution that a strategy is given, or `LowRank` of that rank and law."""
    if distribution is None:
        return LowRank(rank=1 if rank is None else rank, law="popcount" if law is None else law)
    if rank is not None or law is not None:
        kind = "FullRank" if isinstance(distribution, FullRank) else "LowRank"
        raise ValueError(
            f"expected rank and law inside the distribution, got rank={rank} and law={law} beside {kind}; "
            "set them in the distribution alone"
        )
    return distribution


def _signature(params: Any) -> tuple[Any, list[Any]]:
    leaves, tree = jax.tree.flatten(params)
    return tree, [(np.shape(x), getattr(x, "dtype", None)) for x in leaves]


def _describe_leaves(params: Any) -> dict[str, str]:
    """Path → "float32[4,3]" of every leaf."""
    return dict(zip(leaf_paths(params), map(_describe, jax.tree.leaves(params)), strict=True))


def _describe(leaf: Any) -> str:
    if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
        return f"a {type(leaf).__name__}"
    return f"{jnp.result_type(leaf)}[{','.join(map(str, np.shape(leaf)))}]"


def _one_line(tree: Any) -> str:
    return " ".join(str(tree).split())
