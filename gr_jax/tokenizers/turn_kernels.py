"""GPU kernels of a pass of Algorithm 1: radii, lists, and who holds what.

Each does in one launch what its plain twin, in `select`, `candidate_lists` or
`serial_choice`, does in many that wait for one another.

`settle` is deferred acceptance. An item is marked with the earliest cluster
that asked for it; a cluster asks for the first of its list that no earlier one
holds. Marks only ever fall, so what a cluster was refused once stays refused,
and the end is the same in whatever order programs ask: they need not wait for
one another, and may read marks that are out of date. A launch in which nobody
asks is the end.

Written in Pallas for its Triton backend; see `core.pallas_gpu`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from gr_jax.core import pallas_gpu
from gr_jax.tokenizers import select

MOST_SAMPLES = 1 << 15  # of a cluster, held by one program
_MOST_SLOTS = 4096  # of a list, read at a time
_WORDS = 2048  # of a mask, one program's
_SWEEPS = 32  # most times that a launch goes through a list


def upper_bound(
  bits: jax.Array, rank: jax.Array, *, interpret: bool = False
) -> jax.Array:
  """Does `select.upper_bound` on one device in one launch.

  Args:
    bits: int32 [m, s], at most MOST_SAMPLES columns.
    rank: int32 [m].
    interpret: Runs in plain JAX, on any device.
  """
  rows, length = bits.shape
  padded = max(32, pl.next_power_of_2(length))
  out = jax.ShapeDtypeStruct((rows,), jnp.int32)
  return pl.pallas_call(
    functools.partial(_bound, padded=padded),
    grid=(rows,),
    in_specs=[pallas_gpu.whole(bits), pallas_gpu.whole(rank)],
    out_specs=pallas_gpu.whole(out),
    out_shape=out,
    **pallas_gpu.options(
      min(32, max(4, padded // 512)), 1, interpret=interpret
    ),
  )(bits, rank)


def _bound(bits_ref, rank_ref, out_ref, *, padded):
  row, length = pl.program_id(0), bits_ref.shape[1]
  column = jnp.arange(padded, dtype=jnp.int32)
  bits = pallas_gpu.load(
    bits_ref.at[row, column], mask=column < length, other=int(select.NEVER)
  )
  rank = rank_ref[row]

  def settle_bit(step, prefix):
    tried = prefix + (jnp.int32(1) << (30 - step))
    smaller = jnp.sum((bits < tried).astype(jnp.int32))
    return jnp.where(smaller < rank, tried, prefix)

  prefix = lax.fori_loop(0, select.BOUND_BITS, settle_bit, jnp.int32(0))
  out_ref[row] = prefix + ((1 << (31 - select.BOUND_BITS)) - 1)


def set_bits(
  masks: jax.Array, capacity: int, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
  """Does `candidate_lists.set_bits`; what lies past a list's end is undefined.

  A program a piece of a row: it writes the lowest bit of each of its words,
  then the second lowest, until no word has another.

  Args:
    masks: uint32 [m, words].
    capacity: Static.
    interpret: Runs in plain JAX, on any device.
  """
  rows, words = masks.shape
  size = min(_WORDS, max(32, pl.next_power_of_2(words)))
  pieces = pl.cdiv(words, size)
  counts = lax.population_count(masks).astype(jnp.int32)
  counts = jnp.pad(counts, ((0, 0), (0, pieces * size - words)))
  sums = jnp.sum(counts.reshape(rows, pieces, size), axis=-1)  # [m, pieces]
  # As a sum of all before: one kernel, where a scan is several.
  ahead = jnp.tri(pieces, k=-1, dtype=bool)
  before = jnp.sum(
    jnp.where(ahead[None], sums[:, None, :], 0), axis=-1, dtype=jnp.int32
  )  # [m, pieces]
  given = (masks, before)
  out = jax.ShapeDtypeStruct((rows, capacity), jnp.int32)
  index = pl.pallas_call(
    functools.partial(_write_bits, size=size, interpret=interpret),
    grid=(rows, pieces),
    in_specs=[pallas_gpu.whole(a) for a in given],
    out_specs=pallas_gpu.whole(out),
    out_shape=out,
    **pallas_gpu.options(max(1, size // 256), 1, interpret=interpret),
  )(*given)
  return index, before[:, -1] + sums[:, -1]


def _write_bits(masks_ref, before_ref, out_ref, *, size, interpret):
  row, piece = pl.program_id(0), pl.program_id(1)
  (_, words), capacity = masks_ref.shape, out_ref.shape[1]
  word = piece * size + jnp.arange(size, dtype=jnp.int32)
  mask = pallas_gpu.load(masks_ref.at[row, word], mask=word < words, other=0)
  count = _population_count(mask)
  first = before_ref[row, piece] + jnp.cumsum(count) - count

  def write(carry):
    mask, place = carry
    lowest = mask & (~mask + np.uint32(1))
    bit = _population_count(lowest - np.uint32(1))
    kept = (mask != 0) & (place < capacity)
    # Interpreted, a store past the end is dropped.
    at = jnp.where(kept, place, capacity) if interpret else place
    pallas_gpu.store(out_ref.at[row, at], word * 32 + bit, mask=kept)
    return mask & ~lowest, place + 1

  def goes_on(carry):
    return jnp.sum((carry[0] != 0).astype(jnp.int32)) > 0

  lax.while_loop(goes_on, write, (mask, first))


def _population_count(x):
  """Set bits of uint32, added up by halves: Pallas has none in Triton."""
  two, four, eight, one = (
    np.uint32(n) for n in (0x55555555, 0x33333333, 0x0F0F0F0F, 0x01010101)
  )
  x = x - ((x >> np.uint32(1)) & two)
  x = (x & four) + ((x >> np.uint32(2)) & four)
  x = (x + (x >> np.uint32(4))) & eight
  return ((x * one) >> np.uint32(24)).astype(jnp.int32)


def settle(
  item: jax.Array,
  wants: jax.Array,
  marks: jax.Array,
  stamp: jax.Array,
  *,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Marks items with the cluster that gets them when all choose in turn.

  Args:
    item: int32 [m, c], each cluster's list, nearest first; -1 is no item.
    wants: int32 [m], items each takes at most.
    marks: int32, of every item: from stamp + m to 2^30.
    stamp: int32 [], positive.
    interpret: Runs in plain JAX, on any device.

  Returns:
    marks, where what row r holds is stamp + r; and the number of launches.
  """
  rows, slots = item.shape
  # Lists are some four shares long: about one at a time.
  size = min(_MOST_SLOTS, max(16, pl.next_power_of_2(slots) // 4))
  # Pallas has an atomic minimum of floats alone; their bits order as integers.
  marks = lax.bitcast_convert_type(marks, jnp.float32)
  given = (item, wants, stamp[None], marks)
  results = [
    jax.ShapeDtypeStruct(marks.shape, jnp.float32),
    jax.ShapeDtypeStruct((rows,), jnp.int32),
  ]
  call = pl.pallas_call(
    functools.partial(_ask, size=size, interpret=interpret),
    grid=(rows,),
    in_specs=[pallas_gpu.whole(a) for a in given],
    out_specs=[pallas_gpu.whole(a) for a in results],
    out_shape=results,
    input_output_aliases={3: 0},
    **pallas_gpu.options(max(1, size // 128), 1, interpret=interpret),
  )

  def body(carry):
    marks, _, launches = carry
    # Two launches a turn: a loop's condition costs more than one.
    marks, _ = call(*given[:3], marks)
    marks, asked = call(*given[:3], marks)
    return marks, jnp.any(asked > 0), launches + 2

  carry = body((marks, None, jnp.int32(0)))  # unconditionally: always needed
  marks, _, launches = lax.while_loop(lambda c: c[1], body, carry)
  return lax.bitcast_convert_type(marks, jnp.int32), launches


def _ask(
  item_ref,
  wants_ref,
  stamp_ref,
  _,
  marks_ref,
  asked_ref,
  *,
  size,
  interpret,
):
  """A cluster asks until it has heard no refusal."""
  from jax.experimental.pallas import triton

  row, slots = pl.program_id(0), item_ref.shape[1]
  mine, wants = stamp_ref[0] + row, wants_ref[row]
  value = lax.bitcast_convert_type(
    jnp.full((size,), mine, jnp.int32), jnp.float32
  )

  def some_slots(carry):
    begin, need, asked = carry
    slot = begin + jnp.arange(size, dtype=jnp.int32)
    item = pallas_gpu.load(item_ref.at[row, slot], mask=slot < slots, other=-1)
    place = jnp.maximum(item, 0)
    # Volatile: from the cache that all programs share, not their own.
    mark = triton.load(
      marks_ref.at[place], mask=item >= 0, other=0.0, volatile=True
    )
    mark = lax.bitcast_convert_type(mark, jnp.int32)
    free = mark >= mine
    turn = jnp.cumsum(free.astype(jnp.int32))
    new = free & (turn <= need) & (mark > mine)
    count = jnp.sum(new.astype(jnp.int32))

    @pl.when(count > 0)
    def _():
      if interpret:  # which knows no atomic operation with a mask
        at = jnp.where(new, place, marks_ref.shape[0])
        pallas_gpu.store(marks_ref.at[at], value, mask=new)
      else:
        triton.atomic_min(marks_ref, (place,), value, mask=new)

    found = jnp.sum(free.astype(jnp.int32))
    return begin + size, need - jnp.minimum(found, need), asked + count

  def sweep(carry):
    step, _, total = carry
    asked = lax.while_loop(
      lambda c: (c[0] < slots) & (c[1] > 0),
      some_slots,
      (jnp.int32(0), wants, jnp.int32(0)),
    )[2]
    return step + 1, asked, total + asked

  carry = (jnp.int32(0), jnp.int32(1), jnp.int32(0))
  asked_ref[row] = lax.while_loop(
    lambda c: (c[0] < _SWEEPS) & (c[1] > 0), sweep, carry
  )[2]
