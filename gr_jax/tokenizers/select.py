"""Selection by counting: the w-th smallest of many, without sorting them.

Values are the bits of non-negative floats, which order as integers. A digit
of the wanted value is found by counting how many lie below each candidate.
Counts add up over devices, so only 15 numbers a digit travel.
"""

from collections.abc import Callable
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Int32

NEVER = np.int32(2**31 - 1)  # above the bits of every finite number
_DIGIT_BITS = 4
# Of 31 bits, `upper_bound` settles this many: the exponent and 12 more.
BOUND_BITS = 20
_PART = 512  # values counted together


def nothing(x: jax.Array) -> jax.Array:
  """The sum over one device."""
  return x


@no_type_check  # an int32 array may be a scalar tracer of any origin
def take_smallest(
  bits: Int32[Array, " N"],
  count: Int[Array, ""],
  *,
  axis: str | tuple[str, ...] | None = None,
) -> Bool[Array, " N"]:
  """Marks the `count` smallest of int32 >= 0, ties by lowest index.

  Finds the count-th smallest value digit by digit: of the values that share
  the digits found so far, count those below each of 15 next digits.

  Args:
    bits: Values; under `shard_map`, this device's, which come after those of
      devices before it.
    count: How many to mark, on all devices together.
    axis: Mesh axis, or axes, that `bits` is split over.
  """
  total = (lambda n: lax.psum(n, axis)) if axis else nothing

  def body(step: jax.Array, carry):
    prefix, below = carry  # the value's high digits; items surely below it
    shift = 32 - _DIGIT_BITS * (step + 1)
    # The top digit never sets the sign bit: distances are not negative.
    digits = jnp.arange(1, 1 << _DIGIT_BITS, dtype=jnp.uint32)
    tries = prefix + (digits << shift)
    smaller = total(
      jnp.sum(bits.astype(jnp.uint32)[None, :] < tries[:, None], axis=1)
    )  # [15], items below each candidate
    digit = jnp.sum(smaller < count).astype(jnp.uint32)
    known = jnp.where(digit > 0, smaller[digit - 1], below)
    return prefix + (digit << shift), known

  value, below = lax.fori_loop(
    0, 32 // _DIGIT_BITS, body, (jnp.uint32(0), jnp.int32(0))
  )
  value = value.astype(jnp.int32)
  ties = bits == value
  turn = jnp.cumsum(ties.astype(jnp.int32))  # [N]
  if axis:
    through = jnp.cumsum(lax.all_gather(turn[-1], axis))  # [P]
    turn = turn + through[lax.axis_index(axis)] - turn[-1]
  return (bits < value) | (ties & (turn <= count - below))


def upper_bound(
  bits: Int32[Array, "m s"],
  rank: Int32[Array, " m"],
  *,
  total: Callable[[jax.Array], jax.Array] = nothing,
) -> Int32[Array, " m"]:
  """Bounds the rank-th smallest of each row from above.

  Args:
    bits: Bits of non-negative floats.
    rank: Which value, from 1; NEVER or infinity when a row has fewer.
    total: Sums counts over devices.

  Returns:
    A value not below, whose float is at most 2^-11 above (relatively).
  """
  # Counted by parts, then over parts: a GPU makes that of one long row, too,
  # but for each of the 15 counts apart.
  rows, length = bits.shape
  bits = jnp.pad(bits, ((0, 0), (0, -length % _PART)), constant_values=NEVER)
  bits = bits.reshape(rows, -1, _PART)
  prefix = jnp.zeros(rank.shape, jnp.int32)
  for place in range(BOUND_BITS // _DIGIT_BITS):
    shift = 31 - _DIGIT_BITS * (place + 1)
    tries = [prefix + (d << shift) for d in range(1, 1 << _DIGIT_BITS)]
    # Siblings that read one operand: a GPU fuses them into one pass over it.
    parts = [
      jnp.sum((bits < t[:, None, None]).astype(jnp.int32), axis=2)
      for t in tries
    ]  # 15 times [m, parts]
    smaller = total(jnp.sum(jnp.stack(parts), axis=2))  # [15, m]
    digit = jnp.sum((smaller < rank[None, :]).astype(jnp.int32), axis=0)
    prefix = prefix + (digit << shift)
  return prefix + ((1 << (31 - BOUND_BITS)) - 1)
