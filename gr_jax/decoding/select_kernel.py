"""A GPU kernel that selects the k best of each row in one launch.

Where a level of beam search has few candidates, the time goes into launching
kernels one after the other, and plain forms of selection are five to twenty of
them. Here one program holds a row on chip, from the load to the positions:

1. Scores become int32 keys of the same order, the bits of |x| with the sign of
   x; so -0 and 0 have one key.
2. The least key that k keys reach is found by ternary search: every pass counts
   keys >= two thresholds, both counts in one sum. It ends as soon as exactly k
   keys reach the lower bound, or when the bounds meet, after some 21 passes,
   which is when keys tie. Bounds start at the row's least finite key and its
   best one; a row of fewer than k finite scores needs no search.
3. Keys above the bound are chosen, of those equal to it the first, by one
   prefix sum that gives each chosen one its place.

So the result is that of a stable sort, whatever the scores but NaN. Memory is
read once: 4 B n bytes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from gr_jax.core import kernel_axes, pallas_gpu

MOST = 1 << 15  # candidates: two counts of them share 32 bits
_PAST = np.int32(-(1 << 31))  # key of what lies past a row's end: below all
_MINUS_INF = -np.array(np.inf, np.float32).view(np.int32)[()]


def select(scores: jax.Array, k: int, *, interpret: bool = False) -> jax.Array:
  """Returns positions of the k best of each row, ascending.

  Args:
    scores: float32 [B, n], at most MOST columns, -inf allowed, NaN not.
    k: How many, less than n.
    interpret: Runs in plain JAX, on any device.

  Returns:
    int32 [B, k]; among equal scores the lowest positions are chosen.
  """

  of_rows = kernel_axes.split(_of_rows, (k, interpret), ("b n",), ("b k",), "b")
  return kernel_axes.over_replicas(lambda rows: of_rows(rows)[0])(scores)


def _of_rows(form: tuple[int, bool], scores: jax.Array) -> tuple[jax.Array]:
  k, interpret = form
  batch, n = scores.shape
  padded = max(32, pl.next_power_of_2(n))
  # Measured in whole searches: docs/decoding.md.
  num_warps = min(32, max(2, padded // 256))
  places = jax.ShapeDtypeStruct((batch, k), jnp.int32)
  found = pl.pallas_call(
    functools.partial(_kernel, padded=padded, k=k),
    grid=(batch,),
    in_specs=[pallas_gpu.whole(scores)],
    out_specs=pallas_gpu.whole(places),
    out_shape=places,
    **pallas_gpu.options(num_warps, 1, interpret=interpret),
  )(scores)
  return (found,)


def _kernel(scores_ref, out_ref, *, padded: int, k: int):
  row, n = pl.program_id(0), scores_ref.shape[1]
  index = lax.broadcasted_iota(jnp.int32, (padded,), 0)
  is_real = index < n
  scores = pallas_gpu.load(
    scores_ref.at[row, index], mask=is_real, other=-jnp.inf
  )
  bits = lax.bitcast_convert_type(scores, jnp.int32)
  key = jnp.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
  key = jnp.where(is_real, key, _PAST)
  low = _bound(key, k)
  above, equal = key > low, key == low
  need = k - jnp.sum(above.astype(jnp.int32))  # of the equal ones
  ones = (above.astype(jnp.int32) << 16) + equal.astype(jnp.int32)
  before = jnp.cumsum(ones) - ones
  equal_before = before & 0xFFFF
  kept = above | (equal & (equal_before < need))
  place = (before >> 16) + jnp.minimum(equal_before, need)
  place = jnp.where(kept, place, k)  # interpreted, past the end is dropped
  pallas_gpu.store(out_ref.at[row, place], index, mask=kept)


def _bound(key, k):
  """Returns a number that k keys or more reach, and fewer exceed."""
  finite = key > _MINUS_INF
  best = jnp.max(key)
  least = jnp.min(jnp.where(finite, key, best))
  is_enough = jnp.sum(finite.astype(jnp.int32)) >= k
  start = jnp.where(is_enough, least, _MINUS_INF)
  end = jnp.where(is_enough, best, _MINUS_INF) + 1

  # At least k keys are >= low (`num` of them), fewer are >= high.
  def goes_on(carry):
    low, high, num = carry
    return (num != k) & (low + 1 < high)

  def narrow(carry):
    low, high, num = carry
    # Differences of keys exceed int32; as uint32 they are right.
    third = ((high - low).astype(jnp.uint32) // 3).astype(jnp.int32)
    # Both are in (low, high) or, where those are 2 apart, the lower is low.
    lower, upper = low + third, high - jnp.maximum(third, 1)
    # A sum's upper half stays below 2^15: of n keys one is `start`, less than
    # `upper`.
    count = jnp.sum(
      (key >= lower).astype(jnp.int32)
      + ((key >= upper).astype(jnp.int32) << 16)
    )
    above_lower, above_upper = count & 0xFFFF, count >> 16
    is_upper, is_lower = above_upper >= k, above_lower >= k
    low = jnp.where(is_upper, upper, jnp.where(is_lower, lower, low))
    high = jnp.where(is_upper, high, jnp.where(is_lower, upper, lower))
    num = jnp.where(
      is_upper, above_upper, jnp.where(is_lower, above_lower, num)
    )
    return low, high, num

  return lax.while_loop(goes_on, narrow, (start, end, jnp.int32(-1)))[0]
