"""Ordered lists of what is nearest to some clusters; see `serial_choice`.

What a window of clusters needs besides distances: which rows a mask lets in,
the lists of all devices joined, and each list in the order of its distances.
Built from few, large kernels without a sort of rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32

WORD = 32  # items a mask word holds
GROUP = 8  # mask words counted together


def masks_within(
  scores: jax.Array, limit: jax.Array, free: jax.Array
) -> jax.Array:
  """Marks, per row of [m, n], the free places of scores <= limit.

  Returns:
    uint32 [m, n / WORD], from one read of the scores.
  """
  window, num_rows = scores.shape
  words = num_rows // WORD
  bit = jnp.uint32(1) << jnp.arange(WORD, dtype=jnp.uint32)

  def pack(mask):
    bits = jnp.where(mask, bit[None, None, :], jnp.uint32(0))
    return jnp.sum(bits, axis=-1, dtype=jnp.uint32)

  inside = scores.reshape(window, words, WORD) <= limit[:, None, None]
  return pack(inside) & pack(free.reshape(1, words, WORD))


def set_bits(masks: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
  """Lists the first set bits of each row of masks [m, words].

  The r-th is found by binary search in the counts of groups, then in 8 words.

  Returns:
    int32 [m, capacity], ascending, and how many there are, int32 [m], which
    may be more. Without meaning past that.
  """
  window, words = masks.shape
  counts = lax.population_count(masks).astype(jnp.int32)
  groups = words // GROUP
  through = prefix_sum(
    jnp.sum(counts.reshape(window, groups, GROUP), axis=-1),
    largest=GROUP * WORD,
  )  # [m, groups]
  count = through[:, -1]
  left = jnp.broadcast_to(
    jnp.arange(capacity, dtype=jnp.int32)[None, :], (window, capacity)
  )
  row = jnp.arange(window, dtype=jnp.int32)[:, None]
  flat_through, flat_masks = through.reshape(-1), masks.reshape(-1)

  def at(table, index):
    return table.at[index].get(mode="clip")

  group = jnp.zeros_like(left)  # groups that end at or before the wanted bit
  for step in reversed(range((groups - 1).bit_length())):
    ahead = group + (1 << step)
    before = at(flat_through, row * groups + ahead - 1)
    group = jnp.where((ahead < groups) & (before <= left), ahead, group)
  group = lax.optimization_barrier(group)  # else searched again by all users
  before = at(flat_through, row * groups + group - 1)
  left = left - jnp.where(group > 0, before, 0)
  word = jnp.zeros_like(left)
  mask = jnp.zeros(left.shape, jnp.uint32)
  seen = jnp.zeros_like(left)
  skipped = jnp.zeros_like(left)
  for i in range(GROUP):
    candidate = at(flat_masks, (row * groups + group) * GROUP + i)
    upto = seen + lax.population_count(candidate).astype(jnp.int32)
    hit = (seen <= left) & (left < upto)
    word = jnp.where(hit, i, word)
    mask = jnp.where(hit, candidate, mask)
    skipped = jnp.where(hit, seen, skipped)
    seen = upto
  index = _nth_bit(mask, left - skipped)
  return ((group * GROUP + word) * WORD + index), count


def _nth_bit(mask: jax.Array, nth: jax.Array) -> jax.Array:
  """Position of the nth set bit (from 0) of uint32 masks, by halves."""
  position = jnp.zeros_like(nth)
  for half in (16, 8, 4, 2, 1):
    low = (mask >> position.astype(jnp.uint32)) & jnp.uint32((1 << half) - 1)
    below = lax.population_count(low).astype(jnp.int32)
    skip = nth >= below
    nth = jnp.where(skip, nth - below, nth)
    position = jnp.where(skip, position + half, position)
  return position


def merge(
  here: Any,
  item: jax.Array,
  distance: jax.Array,
  listed: jax.Array,
  count: jax.Array,
  capacity: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Joins the lists of all devices, by device; on one there is no work.

  Returns:
    item, distance and listed [m, capacity], and whether no list overflowed.
  """
  slots = item.shape[1]
  most = count <= slots
  if here.axis is None:
    return item, distance, listed, most
  # Only what is listed travels to the front of each device's list.
  turn = jnp.cumsum(listed.astype(jnp.int32), axis=1) - 1
  row = jnp.arange(item.shape[0], dtype=jnp.int32)[:, None]
  to = jnp.where(listed, turn, slots)
  item = jnp.zeros_like(item).at[row, to].set(item, mode="drop")
  distance = jnp.zeros_like(distance).at[row, to].set(distance, mode="drop")
  item, distance = here.gather(item), here.gather(distance)  # [P, m, c]
  counts = here.gather(jnp.sum(listed, axis=1).astype(jnp.int32))  # [P, m]
  through = jnp.cumsum(counts, axis=0)  # [P, m]
  fits = jnp.all(here.gather(most), axis=0) & (through[-1] <= capacity)
  slot = jnp.arange(capacity, dtype=jnp.int32)
  device = jnp.sum(
    (through[:, :, None] <= slot[None, None, :]).astype(jnp.int32), axis=0
  )  # [m, capacity]
  inside = device < here.num_devices
  device = jnp.minimum(device, here.num_devices - 1)
  first = jnp.take_along_axis((through - counts).T, device, axis=1)
  at = jnp.clip(slot[None, :] - first, 0, slots - 1)
  return item[device, row, at], distance[device, row, at], inside, fits


def by_distance(
  item: jax.Array, distance: jax.Array, listed: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Orders each list by distance, ties by place in it: by item index.

  One flat sort of one 64-bit key: GPUs have a radix sort for that, none for
  rows or for several keys.
  """
  window, slots = item.shape
  # 64 bits: the cluster, a distance of 31 bits, the place in the list.
  low = 33 - (window - 1).bit_length()
  row_shift, last = np.uint64(31 + low), np.uint64((1 << low) - 1)
  nobody = np.uint64((1 << (31 + low)) - 1)
  with jax.enable_x64(True):
    bits = lax.bitcast_convert_type(distance, jnp.uint32).astype(jnp.uint64)
    slot = jnp.arange(slots, dtype=jnp.uint64)[None, :]
    row = jnp.arange(window, dtype=jnp.uint64)[:, None]
    key = jnp.where(listed, (bits << np.uint64(low)) | slot, nobody)
    key = ((row << row_shift) | key).reshape(-1)
    key = lax.sort(key, is_stable=False).reshape(window, slots)
    listed = (key & nobody) != nobody
    slot = jnp.minimum(key & last, np.uint64(slots - 1)).astype(jnp.int32)
  return jnp.take_along_axis(item, slot, axis=1), listed


def prefix_count(mask: Bool[Array, "m n"]) -> Int32[Array, "m n"]:
  """Counts True values up to and including each place of a row."""
  return prefix_sum(mask.astype(jnp.int32), largest=1)


def prefix_sum(x: Int32[Array, "m n"], *, largest: int) -> Int32[Array, "m n"]:
  """Cumulative sums of rows by triangular matmuls; exact below 2^24.

  A scan of a dozen dependent kernels becomes two matmuls.

  Args:
    x: Numbers of at most `largest`, none negative.
    largest: Static. Up to 256 they are exact in bfloat16, which is fastest.
  """
  rows, length = x.shape
  if length <= 256:
    return _triangle(x, largest)
  block = 128
  padded = jnp.pad(x, ((0, 0), (0, -length % block)))
  inner = _triangle(padded.reshape(-1, block), largest)
  inner = inner.reshape(rows, -1, block)
  sums = inner[:, :, -1]  # [m, blocks]
  before = prefix_sum(sums, largest=block * largest) - sums
  return (inner + before[:, :, None]).reshape(rows, -1)[:, :length]


def _triangle(x: jax.Array, largest: int) -> jax.Array:
  index = jnp.arange(x.shape[1])
  fast = largest <= 256
  exact = jnp.bfloat16 if fast else jnp.float32
  sums = lax.dot_general(
    x.astype(exact),
    (index[:, None] <= index[None, :]).astype(exact),
    (((1,), (0,)), ((), ())),
    precision=None if fast else lax.Precision.HIGHEST,
    preferred_element_type=jnp.float32,
  )
  return sums.astype(jnp.int32)
