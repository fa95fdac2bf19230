"""How gradients pass the choice of a code, and other ways of choosing one.

The choice is an argmin, whose gradient is zero. Each function here is one
published way around that, or one published way to spread the choices.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.core import checks, row_split
from gr_jax.core.row_split import RowSplit


def straight_through(
  z: Float[Array, "B C"], quantized: Float[Array, "B C"]
) -> Float[Array, "B C"]:
  """Returns `quantized`; the gradient goes to z unchanged.

  VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937), section 3.2.
  """
  return z + lax.stop_gradient(quantized - z)


def rotation_trick(
  z: Float[Array, "B C"], quantized: Float[Array, "B C"]
) -> Float[Array, "B C"]:
  """Returns `quantized`; the gradient is rotated and scaled as z became it.

  q~ = sg[|q| / |z| (I - 2 r r^T + 2 q^ z^^T)] z, with z^ = z / |z|,
  q^ = q / |q|, r = (z^ + q^) / |z^ + q^| (Fifty et al. 2024,
  arXiv:2410.06424, section 4.2).
  """
  stop = lax.stop_gradient
  z_norm = _norm(stop(z))  # [B, 1]
  q_norm = _norm(stop(quantized))
  z_unit, q_unit = stop(z) / z_norm, stop(quantized) / q_norm
  middle = z_unit + q_unit
  middle = middle / _norm(middle)

  def along(direction: jax.Array) -> jax.Array:
    return jnp.sum(direction * z, axis=-1, keepdims=True)  # [B, 1]

  rotated = z - 2.0 * middle * along(middle) + 2.0 * q_unit * along(z_unit)
  rotated = rotated * (q_norm / z_norm)
  # Rounding, and opposite vectors, for which no rotation is defined, leave the
  # value off by a little or a lot: the value is quantized, whatever happens.
  return rotated + stop(quantized - rotated)


def _norm(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


# What the decoder reads, given the encoder's output and the sum of its codes.
ESTIMATORS = {
  "straight_through": straight_through,
  "rotation_trick": rotation_trick,
}


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class SoftChoice:
  """A sampled code and weights through which gradients reach all codes."""

  codes: jax.Array  # int32 [B]
  weights: jax.Array  # float32 [B, K]; their value is one-hot


def gumbel_softmax(
  distances: Float[Array, "B K"], *, temperature: float, key: jax.Array
) -> SoftChoice:
  """Samples a code by softmax(-distance / temperature); the gradient is soft.

  Straight-through Gumbel-softmax (Jang et al. 2017, arXiv:1611.01144,
  section 2.2).

  Args:
    distances: Squared distances, differentiable.
    temperature: Of the softmax, in units of squared distance.
    key: Random key of the Gumbel noise.
  """
  noise = jax.random.gumbel(key, distances.shape, distances.dtype)
  soft = jax.nn.softmax(noise - distances / temperature, axis=-1)  # [B, K]
  codes = jnp.argmax(soft, axis=-1).astype(jnp.int32)  # [B]
  hard = jax.nn.one_hot(codes, distances.shape[-1], dtype=soft.dtype)
  return SoftChoice(codes, soft + lax.stop_gradient(hard - soft))


def sinkhorn_plan(
  distances: Float[Array, "B K"],
  *,
  epsilon: float,
  num_iters: int,
  split: RowSplit | None = None,
) -> Float[Array, "B K"]:
  """Solves entropic optimal transport between rows and codes of equal mass.

  min_P <P, D> - epsilon H(P) with row sums 1/B and column sums 1/K, by
  Sinkhorn's iteration on logarithms (Cuturi 2013, arXiv:1306.0895, Alg. 1).
  Distances are divided by their mean, so epsilon has no unit.

  Args:
    distances: Squared distances.
    epsilon: Strength of the entropy; smaller is closer to a hard assignment.
    num_iters: Row and column normalizations, static.
    split: Given inside `RowSplit.run`, where `distances` are those of one
      device's rows and [K] numbers travel an iteration.

  Returns:
    The plan P. Its rows sum to 1/B exactly, its columns to 1/K in the limit.
  """
  num_rows, num_codes = distances.shape
  real = jnp.ones((num_rows, 1), bool)
  if split is not None:
    num_rows, real = split.num_rows, split.is_row()[:, None]
  total = jnp.sum(jnp.where(real, distances, 0.0))
  scale = row_split.total(split, total) / (float(num_rows) * num_codes)
  logits = -distances / (epsilon * jnp.maximum(scale, 1e-30))

  def of_columns(logits):
    """Log of the sum of exponentials over all rows, [1, K]."""
    if split is None:
      return jax.nn.logsumexp(logits, axis=0, keepdims=True)
    logits = jnp.where(real, logits, -jnp.inf)
    top = lax.pmax(jnp.max(logits, axis=0, keepdims=True), split.axes)
    sums = jnp.sum(jnp.exp(logits - top), axis=0, keepdims=True)
    return top + jnp.log(row_split.total(split, sums))

  def body(_, logits):
    logits = logits - of_columns(logits)
    logits = logits - jnp.log(jnp.float32(num_codes))
    logits = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    return logits - jnp.log(jnp.float32(num_rows))

  return jnp.exp(lax.fori_loop(0, num_iters, body, logits))


def sinkhorn_codes(
  distances: Float[Array, "B K"],
  *,
  epsilon: float,
  num_iters: int,
  split: RowSplit | None = None,
) -> Int32[Array, " B"]:
  """Chooses each row's code by the largest entry of `sinkhorn_plan`.

  As LC-Rec (arXiv:2311.09049, section 3.2) and SaviorRec do while training.
  """
  plan = sinkhorn_plan(
    distances, epsilon=epsilon, num_iters=num_iters, split=split
  )
  return jnp.argmax(plan, axis=-1).astype(jnp.int32)


def entropy_gap(
  distances: Float[Array, "B K"], *, temperature: float
) -> Float[Array, ""]:
  """log K - H(mean over rows of softmax(-distance / temperature)), >= 0.

  Zero when the batch, softly assigned, uses all codes alike: the diversity
  half of the entropy penalty of Yu et al. 2023 (arXiv:2310.05737, eq. 6).

  Args:
    distances: Squared distances, differentiable.
    temperature: Of the softmax, as a share of the batch's mean distance.
  """
  scale = lax.stop_gradient(jnp.mean(distances)) + 1e-30
  soft = jax.nn.softmax(-distances / (temperature * scale), axis=-1)  # [B, K]
  mean = jnp.mean(soft, axis=0)  # [K]
  entropy = -jnp.sum(mean * jnp.log(mean + 1e-30))
  return jnp.log(jnp.float32(distances.shape[-1])) - entropy


def check_estimator(name: str) -> None:
  """Refuses an estimator that does not exist.

  Raises:
    InputError: The name is unknown.
  """
  checks.check_known(name, [*ESTIMATORS, "gumbel_softmax"], "estimator")
