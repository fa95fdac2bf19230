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
from jaxtyping import Array, Float, Int

from gr_jax.core.precision import bfloat16_parts

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
