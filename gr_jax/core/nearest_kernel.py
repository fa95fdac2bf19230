"""A GPU kernel that finds nearest codes without writing any score to memory.

The plain form writes [rows, K] scores and reads them back, which at small
widths costs several times the matmul. Here a block of rows stays on chip while
all codes pass by, as in flash attention.

Float32's codes come from bfloat16 tensor cores: each number is split in two
bfloat16 parts, three products give a score to about 2^-16 of |x| |c|, and the
best and second best score are kept. Where they are closer than rounding could
make them, the row is computed again by the plain form in float32. So the codes
are the plain form's, all of them.

Written in Pallas for its Triton backend, so far the one that runs this on
NVIDIA GPUs; without it the plain form runs. k-means asks for the kernel.
"""

import functools
import importlib.util
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

_ROWS, _CODES = 128, 128  # of one block
_MOST_WIDTH = 128  # rows and codes of a block must fit on chip
_AGAIN = 1 << 16  # rows computed again at a time


def supports(num_rows: int, num_codes: int, width: int) -> bool:
  """Whether the device can, with blocks enough, each of which fits on chip."""
  fits = num_rows >= 1 << 14 and num_codes >= _CODES and width <= _MOST_WIDTH
  return fits and _is_known_device()


def _is_known_device() -> bool:
  """Whether JAX runs on an NVIDIA GPU that multiplies bfloat16.

  A guess that a device placement contradicts costs time alone: the kernel is
  lowered for CUDA only, and the plain form gives the same codes.
  """
  if jax.default_backend() != "gpu" or not _has_backend():
    return False
  capability = getattr(jax.local_devices()[0], "compute_capability", "")
  is_number = re.fullmatch(r"\d+\.\d", str(capability)) is not None
  return is_number and float(capability) >= 8


def _has_backend() -> bool:
  """Whether this jax still holds the backend that compiles the kernel."""
  name = "jax.experimental.pallas.triton"
  return importlib.util.find_spec(name) is not None


def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two bfloat16 numbers whose sum is x to 2^-16 of it."""
  high = lax.reduce_precision(x, 8, 7)
  return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)


def _kernel(*refs, num_parts: int, num_codes: int):
  """Best code, best score and second best of a block of rows."""
  rows, codes = refs[:num_parts], refs[num_parts : 2 * num_parts]
  norms, code_ref, best_ref, second_ref = refs[2 * num_parts :]
  pairs = [(0, 0), (0, 1), (1, 0)][: 1 if num_parts == 1 else 3]

  def scores(start: jax.Array) -> jax.Array:
    total = jnp.zeros((_ROWS, _CODES), jnp.float32)
    for i, j in pairs:
      b = codes[j][pl.ds(start, _CODES), :]
      total += jnp.dot(rows[i][:, :], b.T, preferred_element_type=jnp.float32)
    return norms[pl.ds(start, _CODES)][None, :] - 2.0 * total

  def body(block, carry):
    code, best, second = carry
    start = block * _CODES
    score = scores(start)  # [rows, codes]
    low = jnp.min(score, axis=1)
    at = jnp.argmin(score, axis=1).astype(jnp.int32)
    column = lax.broadcasted_iota(jnp.int32, score.shape, 1)
    others = jnp.where(column == at[:, None], jnp.inf, score)
    next_low = jnp.min(others, axis=1)
    # The loser of the two best, or either's second.
    second = jnp.minimum(jnp.maximum(best, low), jnp.minimum(second, next_low))
    better = low < best  # ties stay with the lower code
    return jnp.where(better, at + start, code), jnp.minimum(best, low), second

  far = jnp.full((_ROWS,), jnp.inf, jnp.float32)
  carry = (jnp.zeros((_ROWS,), jnp.int32), far, far)
  code, best, second = lax.fori_loop(0, num_codes // _CODES, body, carry)
  code_ref[:] = code
  best_ref[:] = best
  second_ref[:] = second


def best_two(
  x: jax.Array, codebook: jax.Array, *, parts: int, interpret: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Runs the kernel on float32 rows and codes.

  Args:
    x: float32 [N, D].
    codebook: float32 [K, D].
    parts: bfloat16 numbers that stand for a float32: 1 or 2.
    interpret: Runs in plain JAX, for tests without a GPU.

  Returns:
    Code [N], its score |c|^2 - 2 x.c [N], and the second best score [N].
  """
  num_rows, width = x.shape
  padded = max(16, pl.next_power_of_2(width))
  rows = jnp.pad(x, ((0, -num_rows % _ROWS), (0, padded - width)))
  norms = jnp.sum(jnp.square(codebook), axis=-1)
  extra = -codebook.shape[0] % _CODES
  norms = jnp.pad(norms, (0, extra), constant_values=jnp.inf)
  codes = jnp.pad(codebook, ((0, extra), (0, padded - width)))
  num_codes = codes.shape[0]
  by_row = pl.BlockSpec((_ROWS,), lambda i: (i,))
  options = {}
  if not interpret:
    from jax.experimental.pallas import triton

    options["compiler_params"] = triton.CompilerParams(
      num_warps=8, num_stages=3
    )
  code, best, second = pl.pallas_call(
    functools.partial(_kernel, num_parts=parts, num_codes=num_codes),
    grid=(rows.shape[0] // _ROWS,),
    in_specs=[
      *[pl.BlockSpec((_ROWS, padded), lambda i: (i, 0))] * parts,
      *[pl.BlockSpec((num_codes, padded), lambda i: (0, 0))] * parts,
      pl.BlockSpec((num_codes,), lambda i: (0,)),
    ],
    out_specs=[by_row] * 3,
    out_shape=[
      jax.ShapeDtypeStruct(rows.shape[:1], jnp.int32),
      jax.ShapeDtypeStruct(rows.shape[:1], jnp.float32),
      jax.ShapeDtypeStruct(rows.shape[:1], jnp.float32),
    ],
    interpret=interpret,
    **options,
  )(*split(rows)[:parts], *split(codes)[:parts], norms)
  return code[:num_rows], best[:num_rows], second[:num_rows]


def codes_as_plain(
  x: jax.Array,
  codebook: jax.Array,
  plain: Callable[[jax.Array, jax.Array], jax.Array],
  *,
  interpret: bool = False,
) -> jax.Array:
  """Finds the codes that the plain form finds in float32.

  Args:
    x: float32 [N, D], shifted so that lengths are small.
    codebook: float32 [K, D], shifted alike.
    plain: Codes of rows by the plain form.
    interpret: As for `best_two`.

  Returns:
    int32 [N].
  """
  num_rows, width = x.shape
  code, best, second = best_two(x, codebook, parts=2, interpret=interpret)
  # Two parts leave out 2^-16 of either factor and the product of the small
  # ones; sums of 3 D products round, in both forms.
  unit = 3 * 2.0**-16 + (4 * width + 32) * 2.0**-22
  lengths = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1))  # [N]
  longest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(codebook), axis=-1)))
  error = 2 * unit * lengths * longest + unit * jnp.square(longest)
  unsure = second - best <= 2 * error
  count = jnp.sum(unsure)
  size = min(_AGAIN, num_rows)
  which = jnp.nonzero(unsure, size=num_rows, fill_value=num_rows)[0]
  which = jnp.pad(which, (0, size), constant_values=num_rows)

  def body(step, code):
    index = lax.dynamic_slice_in_dim(which, step * size, size)
    again = plain(x.at[index].get(mode="clip"), codebook)
    return code.at[index].set(again, mode="drop")

  return lax.fori_loop(0, -(-count // size), body, code)
