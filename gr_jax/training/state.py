"""What a training step replaces."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
  """Parameters and optimizers of R replicas after `step` updates each.

  Nothing else changes during training: which examples a step sees and what
  its dropout draws follow from `step` and the replicas' keys.
  """

  step: Any  # int32 []
  params: Any  # float32 pytree, leaves [R, ...]
  opt_state: Any  # leaves [R, ...], counters too


def init_state(
  params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state before the first update.

  Args:
    params: Parameters with a leading axis of replicas.
    optimizer: What will update them.
  """
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=jax.vmap(optimizer.init)(params),
  )
