"""Dot products of rows at a named precision.

"float32" is the default of whatever ends in an argmin: codes then do not
depend on the hardware. The others trade digits for tensor cores.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

PRECISIONS = ("float32", "tfloat32", "bfloat16")


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
  if precision == "tfloat32":
    return lax.platform_dependent(
      a,
      b,
      cuda=lambda a, b: plain(a, b, lax.DotAlgorithmPreset.TF32_TF32_F32),
      default=plain,
    )
  return plain(a, b)


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
