"""AdamW for fits inside one loop on the device.

What depends on the step's number alone (learning rate, bias corrections) is
computed for a whole epoch at once. optax computes it in every step, and these
scalars, not the update, are then what keeps XLA from updating all leaves of
one shape by one kernel: 19 leaves take 10 kernels here, 25 there.
"""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int32

B1, B2, EPSILON = 0.9, 0.999, 1e-8

Params = Any


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class Moments:
  """Running means, trees like the parameters."""

  first: Params  # of the gradient
  second: Params  # of its square


@no_type_check
@struct.dataclass
class Rates:
  """What updates multiply with: [S] for S steps, [] for one."""

  learning: jax.Array  # float32, the learning rate
  first: jax.Array  # float32, 1 / (1 - B1^t)
  second: jax.Array  # float32, 1 / (1 - B2^t)


def start(params: Params) -> Moments:
  """Starts both means at zero, in buffers of their own."""
  return Moments(
    first=jax.tree.map(jnp.zeros_like, params),
    second=jax.tree.map(jnp.zeros_like, params),
  )


def rates(
  step: Int32[Array, " S"], *, peak: float, warmup_steps: int, num_steps: int
) -> Rates:
  """Linear warmup, cosine decay to zero, and Adam's bias corrections.

  Args:
    step: Numbers of the updates; the first is 0.
    peak: Learning rate at the end of the warmup.
    warmup_steps: May be 0.
    num_steps: Of the whole fit; the rate reaches zero there.
  """
  t = step.astype(jnp.float32)  # [S]
  rise = t / max(1, warmup_steps)
  share = (t - warmup_steps) / max(1, num_steps - warmup_steps)
  fall = 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.clip(share, 0.0, 1.0)))
  return Rates(
    learning=peak * jnp.where(step < warmup_steps, rise, fall),
    first=1.0 / (1.0 - B1 ** (t + 1.0)),
    second=1.0 / (1.0 - B2 ** (t + 1.0)),
  )


def update(
  params: Params,
  gradient: Params,
  moments: Moments,
  rate: Rates,
  *,
  weight_decay: float,
) -> tuple[Params, Moments]:
  """One step of AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, Alg. 2).

  Weight decay spares biases and codebooks: a code has no reason to be small.

  Args:
    params: A tree of float32 arrays; those named "kernel..." decay.
    gradient: Of the loss, the same tree.
    moments: Before.
    rate: Of this step, scalars.
    weight_decay: Times the learning rate, what a weight loses a step.
  """
  first = jax.tree.map(
    lambda m, g: B1 * m + (1.0 - B1) * g, moments.first, gradient
  )
  second = jax.tree.map(
    lambda v, g: B2 * v + (1.0 - B2) * jnp.square(g), moments.second, gradient
  )

  def move(path, p, m, v):
    change = m * rate.first / (jnp.sqrt(v * rate.second) + EPSILON)
    if "kernel" in jax.tree_util.keystr(path):
      change = change + weight_decay * p
    return p - rate.learning * change

  after = jax.tree_util.tree_map_with_path(move, params, first, second)
  return after, Moments(first, second)
