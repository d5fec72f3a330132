"""`M + scale·A·Bᵀ` as a value that unmodified model code multiplies by, without the sum ever being formed.

`apply_perturbed` traces the user's function on the abstract shapes of the dense leaves, so that any
framework's code sees ordinary arrays, and then evaluates the jaxpr with an environment that holds arrays and
`LowRankArray` values. An operation that would need the dense matrix of a member raises `MaterialiseError`,
unless allowed to.

Source: arXiv 2511.16652, equation for the forward pass of a member.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax

from eggroll.core.matmul import perturbed_matmul
from eggroll.core.rules import RULES
from eggroll.core.value import LowRankArray, MaterialiseError, fold_scale, is_low_rank, settle, to_dense

__all__ = ["LowRankArray", "MaterialiseError", "apply_perturbed", "perturbed_matmul"]


def _run(closed: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr, closed or not, on arrays and `LowRankArray` values."""
    jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *values], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, jex.Literal) else env[variable]

    for equation in jaxpr.eqns:
        results = _equation(equation, [read(variable) for variable in equation.invars])
        env.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _run_dense(closed: Any, values: Sequence[Any], operation: str) -> list[Any]:
    return [to_dense(value, operation) for value in _run(closed, values)]


def _equation(equation: Any, values: list[Any]) -> list[Any]:
    name, params = equation.primitive.name, equation.params
    if not any(map(is_low_rank, values)):
        return _bind(equation, values)
    if name in _CALLS:  # the call is inlined: nobody differentiates or batches here
        return _run(next(params[key] for key in ("jaxpr", "call_jaxpr", "call") if key in params), values)
    if name in _CONTROL:
        return _CONTROL[name](values, **params)
    result = RULES[name](*values, **params) if name in RULES else None
    if result is None:
        return _bind(equation, [to_dense(value, name) for value in values])
    return result if equation.primitive.multiple_results else [result]


def _bind(equation: Any, values: list[Any]) -> list[Any]:
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with equation.ctx.manager:
        result = equation.primitive.bind(*functions, *values, **params)
    return list(result) if equation.primitive.multiple_results else [result]


def _scan_sizes(params: dict[str, Any]) -> tuple[int, int]:
    """How many operands of a scan are constants and how many are its carry; jax 0.11 keeps them as trees."""
    if "ft_in" in params:
        consts, carry, _ = (len(part) for part in params["ft_in"].elts)
        return consts, carry
    return params["num_consts"], params["num_carry"]


def _scan(values: list[Any], *, jaxpr: Any, length: int, reverse: bool, unroll: Any, **params: Any) -> list[Any]:
    num_consts, num_carry = _scan_sizes(params)
    consts, xs = values[:num_consts], values[num_consts + num_carry :]
    init = [to_dense(value, "a scan carry") for value in values[num_consts : num_consts + num_carry]]

    def sliced(x: Any) -> Any:
        """What a step gets a slice of: a factor without the first axis stays whole."""
        if not is_low_rank(x):
            return x
        return x.base, x.a if x.roles[0] in "sr" else None, x.b if x.roles[0] in "sc" else None

    def restored(x: Any, part: Any) -> Any:
        if not is_low_rank(x):
            return part
        base, a, b = part
        a, b = x.a if a is None else a, x.b if b is None else b
        return settle(replace(x, base=base, a=a, b=b, roles=x.roles[1:]))

    def body(carry: list[Any], parts: list[Any]) -> tuple[list[Any], list[Any]]:
        step = [*consts, *carry, *(restored(x, part) for x, part in zip(xs, parts, strict=True))]
        out = _run(jaxpr, step)
        return [to_dense(value, "a scan carry") for value in out[:num_carry]], [fold(y) for y in out[num_carry:]]

    def fold(y: Any) -> Any:
        return fold_scale(y) if is_low_rank(y) else y

    def stacked(y: Any) -> Any:
        """The outputs of all steps: a low-rank one has layers now."""
        return replace(y, scale=jnp.float32(1), roles="s" + y.roles) if is_low_rank(y) else y

    carry, ys = lax.scan(body, init, [sliced(x) for x in xs], length=length, reverse=reverse, unroll=unroll)
    return [*carry, *map(stacked, ys)]


def _while(
    values: list[Any], *, cond_jaxpr: Any, cond_nconsts: int, body_jaxpr: Any, body_nconsts: int, **_: Any
) -> list[Any]:
    test, body = values[:cond_nconsts], values[cond_nconsts : cond_nconsts + body_nconsts]
    init = [to_dense(value, "a while carry") for value in values[cond_nconsts + body_nconsts :]]

    def going(carry: list[Any]) -> Any:
        """A scalar; or, of a loop that was batched by its condition, one for each lane: it goes on as long as any."""
        return _run_dense(cond_jaxpr, [*test, *carry], "a while condition")[0]

    def step(carry: list[Any]) -> list[Any]:
        new = _run_dense(body_jaxpr, [*body, *carry], "a while output")
        if not cond_jaxpr.out_avals[0].shape:
            return new
        lanes = going(carry)
        return [_where_lane(lanes, after, before) for after, before in zip(new, carry, strict=True)]

    return lax.while_loop(lambda carry: jnp.any(going(carry)), step, init)


def _where_lane(lanes: Any, after: Any, before: Any) -> Any:
    """What has come of the lanes that were still going; the others stay."""
    return jnp.where(lax.broadcast_in_dim(lanes, after.shape, range(lanes.ndim)), after, before)


def _cond(values: list[Any], *, branches: Sequence[Any], **_: Any) -> list[Any]:
    index, *operands = values
    return lax.switch(index, [functools.partial(_run_dense, b, operands, "a cond output") for b in branches])


_CALLS = frozenset(
    [
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vmap_call",
    ]
)
_CONTROL: dict[str, Callable[..., list[Any]]] = {"scan": _scan, "while": _while, "cond": _cond}


def apply_perturbed(fn: Callable[..., Any], *args: Any) -> Any:
    """Call `fn(*args)` where leaves of the arguments may be `LowRankArray`; `fn` sees ordinary arrays.

    Args:
      fn: any function of JAX arrays; Flax, NNX, Equinox, Haiku or plain code. It is traced once.
      args: pytrees of arrays and `LowRankArray` values.
    Returns:
      What `fn` returns, as arrays.
    Raises:
      MaterialiseError: an operation without a rule met a leaf that may not be materialised.
    """
    leaves, tree = jax.tree.flatten(args, is_leaf=is_low_rank)
    shown = [jax.ShapeDtypeStruct(x.base.shape, x.base.dtype) if is_low_rank(x) else x for x in leaves]
    trace = jax.make_jaxpr(lambda *flat: fn(*jax.tree.unflatten(tree, flat)), return_shape=True)
    closed, shape = trace(*shown)
    return jax.tree.unflatten(jax.tree.structure(shape), _run_dense(closed, leaves, "the function's output"))
