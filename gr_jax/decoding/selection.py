"""Which k of n scores are the best, in exact and fast forms."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def best_in_order(scores: Float[Array, "B n"], k: int) -> Int[Array, "B k"]:
  """Returns positions of the k best, ascending; ties go to the lowest."""
  if k >= scores.shape[-1]:
    positions = jnp.arange(scores.shape[-1], dtype=jnp.int32)
    return jnp.broadcast_to(positions[None], scores.shape)
  return jnp.sort(jax.lax.top_k(scores, k)[1], axis=-1)


def best_first(scores: Float[Array, "B n"]) -> Int[Array, "B n"]:
  """Returns all positions, best score first; ties go to the lowest."""
  return jax.lax.top_k(scores, scores.shape[-1])[1]
