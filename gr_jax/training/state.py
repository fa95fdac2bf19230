"""What a training step replaces."""

from typing import Any

import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
  """Parameters and optimizer after `step` updates.

  Nothing else changes during training: which examples a step sees and what
  its dropout draws follow from `step` and the run's keys.
  """

  step: Any  # int32 []
  params: Any  # float32 pytree
  opt_state: Any


def init_state(
  params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state before the first update."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
  )
