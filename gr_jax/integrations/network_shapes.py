"""The parameters that a network has, for readers of others' checkpoints."""

from typing import Any

import flax.traverse_util
import jax
import numpy as np

from gr_jax.core import checks
from gr_jax.models import EncoderDecoder, T5Config


def parameter_shapes(config: T5Config) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns each parameter's shape under its path, parts joined by "/"."""
  token = jax.ShapeDtypeStruct((1, 2), np.int32)
  tree = jax.eval_shape(
    lambda key, x: EncoderDecoder(config).init(key, x, x, deterministic=True),
    jax.random.key(0),
    token,
  )["params"]
  return flax.traverse_util.flatten_dict(tree, sep="/")


def check_params(params: Any, config: T5Config) -> None:
  """Refuses parameters of another network.

  Raises:
    InputError: A parameter is missing, unknown, or of another shape.
  """
  wanted = parameter_shapes(config)
  found = flax.traverse_util.flatten_dict(params, sep="/")
  for name in sorted({*wanted, *found}):
    shapes = [
      tuple(tree[name].shape) if name in tree else None
      for tree in (wanted, found)
    ]
    if shapes[0] != shapes[1]:
      raise checks.InputError(
        f"Parameter {name!r} has shape {shapes[1]} in the checkpoint, "
        f"{shapes[0]} in the network; use the config it was trained with."
      )
