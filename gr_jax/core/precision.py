"""Dot products of rows at a named precision.

"float32" is the default of whatever ends in an argmin: codes then do not
depend on the hardware. The others trade digits for tensor cores.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

PRECISIONS = ("float32", "tfloat32", "bfloat16")
# From so many rows on either side, six times the width is worth making.
_MANY = 512


def row_dots(
  a: Float[Array, "M D"], b: Float[Array, "N D"], precision: str = "float32"
) -> Float[Array, "M N"]:
  """Computes a @ b.T in float32 sums.

  Args:
    a: Rows.
    b: Rows.
    precision: Of the products, static. "tfloat32" keeps 11 bits of each
      number on NVIDIA GPUs (cut off, not rounded) and is float32 elsewhere;
      "bfloat16" keeps 8.
  """

  def plain(a, b, how=lax.Precision.HIGHEST):
    return lax.dot_general(
      a,
      b,
      (((1,), (1,)), ((), ())),
      precision=how,
      preferred_element_type=jnp.float32,
    )

  if precision == "bfloat16":
    return plain(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), None)
  if precision == "float32" and min(a.shape[0], b.shape[0]) >= _MANY:
    return lax.platform_dependent(a, b, cuda=dots_by_parts, default=plain)
  if precision == "tfloat32":
    return lax.platform_dependent(
      a,
      b,
      cuda=lambda a, b: plain(a, b, lax.DotAlgorithmPreset.TF32_TF32_F32),
      default=plain,
    )
  return plain(a, b)


def bfloat16_parts(x: Float[Array, "N D"]) -> tuple[jax.Array, ...]:
  """Three bfloat16 arrays whose sum is x: 8 bits each of its 24."""
  parts = []
  for _ in range(3):
    part = lax.reduce_precision(x, 8, 7)
    parts.append(part.astype(jnp.bfloat16))
    x = x - part
  return tuple(parts)


def dots_by_parts(
  a: Float[Array, "M D"], b: Float[Array, "N D"]
) -> Float[Array, "M N"]:
  """Computes a @ b.T to float32 on bfloat16 tensor cores.

  Six of the nine products of three parts each, the small ones first, as one
  matmul of six times the width; the other three are below 2^-24 of |a| |b|.
  TPUs do the same for float32 at the highest precision. GPUs multiply
  bfloat16 about 16 times as fast as float32.
  """
  a1, a2, a3 = bfloat16_parts(a)
  b1, b2, b3 = bfloat16_parts(b)
  return lax.dot_general(
    jnp.concatenate([a3, a1, a2, a2, a1, a1], axis=1),
    jnp.concatenate([b1, b3, b2, b1, b2, b1], axis=1),
    (((1,), (1,)), ((), ())),
    preferred_element_type=jnp.float32,
  )


def unit(precision: str) -> float:
  """Bounds the relative error of one number at a precision."""
  # Tensor cores may cut off where tfloat32 would round: 2^-10, not 2^-11.
  return {"float32": 2.0**-24, "tfloat32": 2.0**-10, "bfloat16": 2.0**-8}[
    precision
  ]


def fastest(function, *operands: jax.Array) -> jax.Array:
  """Calls `function(precision, *operands)` with the platform's fastest.

  For bounds and filters, whose result does not depend on it.
  """
  return lax.platform_dependent(
    *operands,
    cpu=lambda *x: function("float32", *x),
    cuda=lambda *x: function("tfloat32", *x),
    default=lambda *x: function("bfloat16", *x),
  )
