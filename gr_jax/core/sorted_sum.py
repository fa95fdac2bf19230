"""Sums of rows by id on GPUs: rows are read once, in the order of their ids.

A scatter-add lets rows of equal id wait for one another, and adds floats in an
order that differs from run to run. Here row numbers are sorted by id, a radix
sort of one or two bytes a key. The sorted order is cut into pieces of equal
length; a program gathers the rows of one piece and adds up each id's. Piece p
and id k leave their sum at place p + k: along the sorted order one of the two
grows at a time, so no two share a place. A second kernel adds up the places of
each id, which lie side by side. All additions have a fixed order: the same bits
in every run.

Written in Pallas for its Triton backend; see `core.pallas_gpu`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import pallas_gpu

_MOST_COLUMNS = 128  # of a row, added up by one program


class Pieces(NamedTuple):
  """How the work is cut up."""

  rows: int  # of the sorted order, a program's
  together: int  # rows gathered at a time
  num_warps: int = 4


def sum_and_count(
  ids: Int[Array, " N"],
  rows: Float[Array, "N D"],
  *,
  num_rows: int,
  all_inside: bool = False,
  pieces: Pieces | None = None,
  interpret: bool = False,
) -> tuple[Float[Array, "K D"], Int32[Array, " K"]]:
  """Sums and counts rows of equal id, the same bits in every run.

  Args:
    ids: Where each row goes; ids outside [0, num_rows) go nowhere.
    rows: What is summed, float32 or narrower.
    num_rows: K, static.
    all_inside: No id is outside, static: 256 ids then fit one byte.
    pieces: How the work is cut up, by default as measured best.
    interpret: Runs in plain JAX, for tests without a GPU.

  Returns:
    float32 sums and counts.
  """
  kinds = num_rows + (not all_inside)
  key = jnp.uint8 if kinds <= 1 << 8 else jnp.uint16
  key = key if kinds <= 1 << 16 else jnp.uint32
  if not all_inside:
    ids = jnp.where((ids < 0) | (ids >= num_rows), num_rows, ids)
  ids, order = lax.sort(
    (ids.astype(key), lax.iota(jnp.int32, ids.shape[0])), num_keys=1
  )
  sums, ends = _sum_sorted(ids, order, rows, num_rows, pieces, interpret)
  return sums, jnp.diff(ends, prepend=0)


def _add_rows(load, begin, end, shape):
  """Sums rows [begin, end), so many at a time; `load` gives some of them."""

  def body(step, total):
    return total + load(begin + step * shape[0])

  steps = pl.cdiv(end - begin, shape[0])
  total = lax.fori_loop(0, steps, body, jnp.zeros(shape, jnp.float32))
  return jnp.sum(total, axis=0)


def _block(ref, row, is_row, column):
  """Loads some columns of some rows; 0 where there are none."""
  shape = (row.size, column.size)
  return pallas_gpu.load(
    ref.at[
      jnp.broadcast_to(row[:, None], shape),
      jnp.broadcast_to(column[None, :], shape),
    ],
    mask=is_row[:, None] & (column < ref.shape[1])[None, :],
    other=0,
  )


def _sum_piece(
  ids_ref, order_ref, rows_ref, parts_ref, ends_ref, *, size, shape, num_rows
):
  """Sums of a piece of the sorted order by id, and where ids end in it."""
  count, width = rows_ref.shape
  piece, is_last = pl.program_id(0), pl.program_id(0) == pl.num_programs(0) - 1
  begin = piece * size
  column = pl.program_id(1) * shape[1] + jnp.arange(shape[1], dtype=jnp.int32)
  inside = column < width
  turn = begin + jnp.arange(size, dtype=jnp.int32)
  ids = pallas_gpu.load(ids_ref.at[turn], mask=turn < count, other=0)
  ids = jnp.where(turn < count, ids.astype(jnp.int32), num_rows)

  def add(k, _):
    end = begin + jnp.sum((ids <= k).astype(jnp.int32))

    def load(at):
      turn = at + jnp.arange(shape[0], dtype=jnp.int32)
      row = pallas_gpu.load(order_ref.at[turn], mask=turn < end, other=0)
      return _block(rows_ref, row, turn < end, column).astype(jnp.float32)

    start = begin + jnp.sum((ids < k).astype(jnp.int32))
    total = _add_rows(load, start, end, shape)
    place = jnp.full(column.shape, piece + k, jnp.int32)
    pallas_gpu.store(parts_ref.at[place, column], total, mask=inside)
    # An id that reaches the piece's end may go on in the next.
    pallas_gpu.store(ends_ref.at[k], end, mask=is_last | (k < high))
    return ()

  # From the last id of the piece before, which may have ended with it.
  before = ids_ref[jnp.maximum(begin - 1, 0)].astype(jnp.int32)
  low = jnp.where(piece > 0, before, 0)
  high = ids_ref[jnp.minimum(begin + size, count) - 1].astype(jnp.int32)
  most = jnp.where(is_last, num_rows - 1, jnp.minimum(high, num_rows - 1))
  lax.fori_loop(low, most + 1, add, ())


def _sum_places(ends_ref, parts_ref, out_ref, *, size, shape):
  """Sum of all places of one id."""
  k = pl.program_id(0)
  width = parts_ref.shape[1]
  column = pl.program_id(1) * shape[1] + jnp.arange(shape[1], dtype=jnp.int32)
  inside = column < width
  begin = jnp.where(k > 0, ends_ref[jnp.maximum(k - 1, 0)], 0)
  end = ends_ref[k]
  low = begin // size + k
  high = jnp.where(begin < end, (end - 1) // size + k + 1, low)

  def load(at):
    place = at + jnp.arange(shape[0], dtype=jnp.int32)
    return _block(parts_ref, place, place < high, column)

  row = jnp.full(column.shape, k, jnp.int32)
  total = _add_rows(load, low, high, shape)
  pallas_gpu.store(out_ref.at[row, column], total, mask=inside)


def _sum_sorted(ids, order, rows, num_rows, pieces, interpret):
  """Sums of rows whose numbers are sorted by id, and where each id ends."""
  count, width = rows.shape
  columns = min(_MOST_COLUMNS, max(16, pl.next_power_of_2(width)))
  if pieces is None:
    pieces = Pieces(rows=8 * columns, together=64)
  shape = (pieces.together, columns)
  num_pieces, num_columns = pl.cdiv(count, pieces.rows), pl.cdiv(width, columns)
  call = functools.partial(
    pl.pallas_call,
    **pallas_gpu.options(pieces.num_warps, 2, interpret=interpret),
  )
  floats = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  results = [
    floats((num_pieces + num_rows, width)),
    jax.ShapeDtypeStruct((num_rows,), jnp.int32),
  ]
  parts, ends = call(
    functools.partial(
      _sum_piece, size=pieces.rows, shape=shape, num_rows=num_rows
    ),
    grid=(num_pieces, num_columns),
    in_specs=[pallas_gpu.whole(a) for a in (ids, order, rows)],
    out_specs=[pallas_gpu.whole(a) for a in results],
    out_shape=results,
  )(ids, order, rows)
  result = floats((num_rows, width))
  sums = call(
    functools.partial(_sum_places, size=pieces.rows, shape=shape),
    grid=(num_rows, num_columns),
    in_specs=[pallas_gpu.whole(a) for a in (ends, parts)],
    out_specs=pallas_gpu.whole(result),
    out_shape=result,
  )(ends, parts)
  return sums, ends
