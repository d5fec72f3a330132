"""Which code computes the members' product and the update: XLA's own, or a Pallas kernel. Decided here alone.

The environment variable EGGROLL_KERNELS says: "auto" (the default), "xla", "pallas" (on CUDA, where shapes divide into
tiles) or "interpret" (the kernels on any device, slowly, to test). "auto" is XLA everywhere but for those products that
ask for a kernel by themselves. It is read when a function is traced.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

MODES = ("auto", "xla", "pallas", "interpret")


def kernel_mode() -> str:
    """The mode in force.

    Raises:
      ValueError: the environment variable holds something else.
    """
    mode = os.environ.get("EGGROLL_KERNELS", "auto")
    if mode not in MODES:
        raise ValueError(f"expected EGGROLL_KERNELS among {', '.join(MODES)}, got {mode!r}; unset it or choose one")
    return mode


def choose(kernel: Callable[..., Any] | None, plain: Callable[..., Any], *args: jax.Array, auto: str = "xla") -> Any:
    """`kernel(*args, interpret=…)` where the mode and the device want it, else `plain(*args)`.

    Args:
      kernel: None where the shapes or settings do not suit one.
      auto: the mode that "auto" stands for here.
    """
    mode = kernel_mode()
    mode = auto if mode == "auto" else mode
    if kernel is None or mode == "xla":
        return plain(*args)
    if mode == "interpret":
        return kernel(*args, interpret=True)
    return lax.platform_dependent(*args, cuda=lambda *own: kernel(*own, interpret=False), default=plain)


def is_plain_float(*arrays: jax.Array) -> bool:
    """Whether all share one float dtype that the kernels take."""
    kinds = {x.dtype for x in arrays}
    return len(kinds) == 1 and kinds <= {jnp.dtype(name) for name in ("float32", "bfloat16", "float16")}
