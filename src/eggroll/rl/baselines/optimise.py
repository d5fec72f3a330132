"""The optimiser of the baselines."""

from __future__ import annotations

from typing import Any

import optax


def adam(learning_rate: float, max_grad_norm: float, updates: int = 0, epsilon: float = 1e-8) -> Any:
    """Adam on a gradient whose global norm is cut to `max_grad_norm`.

    Args:
      learning_rate: step size, at the start if it falls.
      max_grad_norm: may be inf.
      updates: in which the step size falls linearly to 0, where it stays; 0: it is constant.
      epsilon: added to the root of the second moment.
    """
    rate = optax.linear_schedule(learning_rate, 0.0, updates) if updates else learning_rate
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(rate, eps=epsilon))
