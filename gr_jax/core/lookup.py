"""Table lookup whose gradient is a matmul.

The gradient of `table[ids]` is a scatter-add, which accelerators serialize on
repeated rows (padding, few codes, collapsed codebooks): it alone can double
the time of a training step. The product of a one-hot matrix with the incoming
gradient is the same sum on the matrix units.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks
from gr_jax.core.precision import bfloat16_parts

# A sum of whole numbers: entries of 24 bits, their sign included, are cut into
# two digits, of which so many add up to no more than 2^24.
_DIGIT = 1 << 12
_MOST_ADDED = 1 << 13
_SPARE = 16  # times an equal share of the rows that an id may have at once
_COPIES_APART = 16  # of the sums, where rows are added a part at a time
_COUNTERS = 1 << 15  # at the least: additions to one counter wait for others
# Largest one-hot block held at once: 128 M elements, 256 MB in bfloat16.
_BLOCK_ELEMENTS = 1 << 27


def lookup(
  table: Float[Array, "K D"],
  ids: Int[Array, "*batch"],
  *,
  precision: lax.Precision | None = None,
) -> Float[Array, "*batch D"]:
  """Gathers rows of `table`; differentiable once, in reverse, w.r.t. `table`.

  The forward pass is exact. The gradient is accumulated in float32; on a CPU,
  where a scatter-add is faster, it is a scatter-add.

  >>> import jax.numpy as jnp
  >>> lookup(jnp.array([[1.0], [2.0]]), jnp.array([1, 1, 0])).tolist()
  [[2.0], [2.0], [1.0]]

  Args:
    table: Rows to choose from.
    ids: Row numbers in [0, K). Others are clipped and receive no gradient.
    precision: Of the gradient's matmul. The one-hot side is exact in any, so
      the backend's default only rounds the incoming gradient (to TF32 on
      recent GPUs, to bfloat16 on TPUs).

  Returns:
    table[ids], in the table's dtype.
  """
  return _lookup(table, ids, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lookup(
  table: jax.Array, ids: jax.Array, precision: lax.Precision | None
) -> jax.Array:
  del precision
  return jnp.take(table, ids, axis=0, mode="clip")


def _forward(table, ids, precision):
  # An array of no size carries the table's shape and dtype to the backward
  # pass, where the table itself is not needed.
  return _lookup(table, ids, precision), (
    ids,
    jnp.zeros((table.shape[0], 0), table.dtype),
  )


def _backward(precision, saved, gradient):
  ids, like = saved
  ids = ids.reshape(-1)  # [B]
  gradient = gradient.reshape(-1, gradient.shape[-1])  # [B, D]
  summed = sum_by_id(ids, gradient, num_rows=like.shape[0], precision=precision)
  return summed.astype(like.dtype), None


_lookup.defvjp(_forward, _backward)


def sum_by_id(
  ids: Int[Array, " B"],
  rows: Float[Array, "B D"],
  *,
  num_rows: int,
  precision: lax.Precision | None = None,
) -> Float[Array, "K D"]:
  """Sums rows of equal id: a scatter-add on CPU, a one-hot matmul elsewhere.

  Args:
    ids: Where each row goes; ids outside [0, num_rows) go nowhere.
    rows: What is summed.
    num_rows: K, static.
    precision: Of the matmul.

  Returns:
    float32 [K, D].
  """
  return lax.platform_dependent(
    ids,
    rows,
    cpu=functools.partial(scatter_sum, num_rows=num_rows),
    default=functools.partial(
      one_hot_sum, num_rows=num_rows, precision=precision
    ),
  )


def one_hot_sum(
  ids: Int[Array, " B"],
  rows: Float[Array, "B D"],
  *,
  num_rows: int,
  precision: lax.Precision | None = None,
) -> Float[Array, "K D"]:
  """Sums rows of equal id by a one-hot matmul, in blocks of bounded memory.

  Args:
    ids: Where each row goes; ids outside [0, num_rows) go nowhere.
    rows: What is summed.
    num_rows: K, static.
    precision: Of the matmul.

  Returns:
    float32 [K, D].
  """
  block = max(1, _BLOCK_ELEMENTS // num_rows)
  count = ids.shape[0]
  if count <= block:
    return _one_hot_matmul(ids, rows, num_rows, precision)
  num_blocks = -(-count // block)
  block = -(-count // num_blocks)  # blocks of nearly equal size
  padding = num_blocks * block - count
  ids = jnp.pad(ids, (0, padding), constant_values=-1)
  rows = jnp.pad(rows, ((0, padding), (0, 0)))

  def body(total, piece):
    return total + _one_hot_matmul(*piece, num_rows, precision), None

  total = jnp.zeros((num_rows, rows.shape[-1]), jnp.float32)
  pieces = (
    ids.reshape(num_blocks, block),
    rows.reshape(num_blocks, block, rows.shape[-1]),
  )
  return lax.scan(body, total, pieces)[0]


def scatter_sum(
  ids: Int[Array, " B"], rows: Float[Array, "B D"], *, num_rows: int
) -> Float[Array, "K D"]:
  """Sums rows of equal id by a scatter-add; the twin of `one_hot_sum`."""
  total = jnp.zeros((num_rows, rows.shape[-1]), jnp.float32)
  # Negative numbers would count from the end: send them past it, to be dropped.
  ids = jnp.where(ids < 0, num_rows, ids)
  return total.at[ids].add(rows.astype(jnp.float32), mode="drop")


def whole_number_sum(
  ids: Int[Array, " B"],
  rows: Float[Array, "B D"],
  *,
  num_rows: int,
  largest: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "K D"], Int32[Array, " K"]]:
  """Sums and counts rows of equal id: the same bits in any order of adding.

  A GPU's scatter adds in an order of its own, so that the last bits of
  floating-point sums differ from run to run. But it adds float32 faster than
  whole numbers, and float32 holds whole numbers up to 2^24 exactly. Entries
  are rounded to 24 bits below the largest magnitude of all rows (or to
  2^-125), which is no worse than adding B of them in float32, and cut into
  two digits of at most 2^11. Rows are spread over copies of the sums, so that
  2^13 of them come together at most. Where one id has too many rows for that,
  a part of the rows is added at a time.

  Args:
    ids: Where each row goes; ids outside [0, num_rows) go nowhere.
    rows: What is summed, finite.
    num_rows: K, static.
    largest: The largest magnitude of all rows, where it is known; else it
      costs another look at them.

  Returns:
    Sums, float32, of exact sums rounded twice, and counts.

  Raises:
    InputError: More than 2^28 rows.
  """
  count, width = rows.shape
  if count > 1 << 28:
    raise checks.InputError(
      f"{count} rows are too many for one sum; add up parts of at most 2^28."
    )
  ids = jnp.where((ids < 0) | (ids >= num_rows), num_rows, ids)
  # frexp: 2^exponent is above every magnitude. The shift's bounds keep powers
  # of two normal numbers.
  if largest is None:
    largest = jnp.max(jnp.abs(rows))
  _, exponent = jnp.frexp(largest.astype(jnp.float32))
  shift = jnp.clip(23 - exponent, -125, 125)
  one = jnp.float32(1)
  up = functools.partial(_whole_rows, scale=jnp.ldexp(one, shift))
  copies = -(-_SPARE * count // (_MOST_ADDED * num_rows))
  place, counts = _spread(ids, num_rows, copies)

  def at_once() -> jax.Array:
    return _sum_digits(place, up(rows), num_rows, copies)

  def by_parts() -> jax.Array:
    size = min(count, _COPIES_APART * _MOST_ADDED)

    def body(step, total):
      start = jnp.minimum(step * size, count - size)
      part = lax.dynamic_slice_in_dim(ids, start, size)
      # The last part starts early: rows that were added go nowhere.
      is_new = start + jnp.arange(size, dtype=jnp.int32) >= step * size
      part = jnp.where(is_new, part, num_rows)
      some = lax.dynamic_slice_in_dim(rows, start, size)
      place, _ = _spread(part, num_rows, _COPIES_APART)
      return total + _sum_digits(place, up(some), num_rows, _COPIES_APART)

    total = jnp.zeros((3, num_rows, width), jnp.int32)
    return lax.fori_loop(0, -(-count // size), body, total)

  fits = jnp.max(counts) <= _MOST_ADDED
  low, middle, high = lax.cond(fits, at_once, by_parts)
  middle = middle + low // _DIGIT
  high = high + middle // _DIGIT
  low = (middle % _DIGIT) * _DIGIT + low % _DIGIT  # below 2^24
  down = jnp.ldexp(one, -shift)
  sums = high.astype(jnp.float32) * (down * _DIGIT**2) + (
    low.astype(jnp.float32) * down
  )
  return sums, jnp.sum(counts.reshape(num_rows, copies), axis=1)


def _whole_rows(rows: jax.Array, scale: jax.Array) -> jax.Array:
  """Whole numbers of at most 2^23, in float32."""
  return jnp.round(rows.astype(jnp.float32) * scale)


def _spread(
  ids: jax.Array, num_rows: int, copies: int
) -> tuple[jax.Array, jax.Array]:
  """Spreads rows over copies of the sums: their places, and how many each."""
  row = jnp.arange(ids.shape[0], dtype=jnp.int32)
  each = -(-_COUNTERS // (num_rows * copies))  # counters of a place
  counts = jnp.zeros((num_rows * each * copies,), jnp.int32)
  counter = ids * (each * copies) + row % (each * copies)
  counts = counts.at[counter].add(1, mode="drop")
  counts = jnp.sum(counts.reshape(num_rows, each, copies), axis=1)
  return ids * copies + row % copies, counts.reshape(-1)


def _sum_digits(
  place: jax.Array, whole: jax.Array, num_rows: int, copies: int
) -> jax.Array:
  """Sums as three digits: int32 [3, K, D], not carried."""
  high = jnp.floor(whole / _DIGIT + 0.5)
  totals = []
  for digit in (whole - high * _DIGIT, high):
    total = scatter_sum(place, digit, num_rows=num_rows * copies)
    total = total.reshape(num_rows, copies, -1).astype(jnp.int32)
    totals.append((jnp.sum(total % _DIGIT, 1), jnp.sum(total // _DIGIT, 1)))
  (low, middle), (more, high) = totals
  return jnp.stack([low, middle + more, high])


def _one_hot_matmul(ids, rows, num_rows, precision):
  one_hot = ids[:, None] == jnp.arange(num_rows, dtype=ids.dtype)[None, :]
  width = rows.shape[-1]
  in_parts = precision == lax.Precision.HIGHEST and rows.dtype == jnp.float32
  if in_parts:
    # Zeros and ones are exact in bfloat16, and so are three parts of a row:
    # one matmul at the fastest precision sums float32.
    rows = jnp.concatenate(bfloat16_parts(rows), axis=1)  # [B, 3 D]
    precision = None
  sums = lax.dot_general(
    one_hot.astype(rows.dtype),  # [B, K]
    rows,
    (((0,), (0,)), ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )  # [K, D]
  if in_parts:
    large, middle, small = (
      sums[:, i * width : (i + 1) * width] for i in range(3)
    )
    sums = large + (middle + small)
  return sums
