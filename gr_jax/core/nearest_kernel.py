"""A GPU kernel that finds nearest codes without writing any score to memory.

The plain form writes [rows, K] scores and reads them back, which at small
widths costs several times the matmul. Here a block of rows stays on chip while
all codes pass by, as in flash attention.

Float32's codes come from bfloat16 tensor cores: each number is split in two
bfloat16 parts, three products give a score to about 2^-16 of |x| |c|, and the
best and second best score are kept. Where they are closer than rounding could
make them, the row is computed again by the plain form in float32. So the codes
are the plain form's, all of them.

Written in Pallas for its Triton backend; `core.nearest_hopper` is the form for
Hopper GPUs. Without either the plain form runs. k-means asks for the kernel.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from gr_jax.core import pallas_gpu

_MOST_WIDTH = {1: 384, 2: 128}  # by parts: a block of rows stays on chip
_PIECE = 128  # columns of a block's rows in one product
_FEWEST_CODES = 128
_MOST_CODES = 1 << 18  # numbers of blocks must leave a score its high bits
_AGAIN = 1 << 16  # rows computed again at a time


class Blocks(NamedTuple):
  """How the kernel cuts up its work."""

  rows: int = 128
  codes: int = 64
  num_warps: int = 8
  num_stages: int = 3


def is_worth(num_rows: int, num_codes: int) -> bool:
  """Whether a kernel has blocks enough to be the faster form."""
  return num_rows >= 1 << 14 and _FEWEST_CODES <= num_codes <= _MOST_CODES


def supports(_: int, width: int, *, parts: int) -> bool:
  """Whether the device can, with rows that fit on chip."""
  return width <= _MOST_WIDTH[parts] and pallas_gpu.is_known_device()


def cut_off(_: int) -> float:
  """The share of a score that two parts cut off: nothing."""
  return 0.0


def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two bfloat16 numbers whose sum is x to 2^-16 of it."""
  # Rounded by its bits: compilers take a cast to bfloat16 and back for nothing.
  bits = lax.bitcast_convert_type(x, jnp.int32)
  bits = (bits + (1 << 15)) & jnp.int32(-1 << 16)
  high = lax.bitcast_convert_type(bits, jnp.float32)
  return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)


def _kernel(*refs, num_parts: int, num_rows: int, blocks: Blocks):
  """Best codes of some rows, and what `best_two` says of them."""
  x_ref, shift_ref, norms_ref, *codes = refs[: 3 + num_parts]
  outputs = refs[3 + num_parts :]
  pairs = [(0, 0), (0, 1), (1, 0)][: 1 if num_parts == 1 else 3]
  width = shift_ref.shape[0]
  piece = min(width, _PIECE)
  pieces = [pl.ds(i, piece) for i in range(0, width, piece)]
  # The last block starts early and writes some rows twice, the same.
  first = jnp.minimum(pl.program_id(0) * blocks.rows, num_rows - blocks.rows)
  mine = pl.ds(first, blocks.rows)
  rows, length = [], jnp.zeros((blocks.rows,), jnp.float32)
  for columns in pieces:
    x = x_ref[mine, columns].astype(jnp.float32) - shift_ref[columns][None, :]
    length += jnp.sum(jnp.square(x), axis=1)
    rows.append(split(x)[:num_parts])

  shape = (blocks.rows, blocks.codes)
  num_blocks = codes[0].shape[0] // blocks.codes
  low_bits = (1 << (num_blocks - 1).bit_length()) - 1

  def score_of(block, start):
    those = pl.ds(block * blocks.codes, blocks.codes)
    score = start + norms_ref[those][None, :]
    for columns, x in zip(pieces, rows, strict=True):
      for i, j in pairs:
        score += jnp.dot(
          x[i], codes[j][those, columns].T, preferred_element_type=jnp.float32
        )
    return score

  if num_parts == 1:
    # Squared distances order as the integers of their bits, whose lowest hold
    # the number of the block: one minimum finds both.
    def packed(block, best):
      start = jnp.broadcast_to(length[:, None], shape)
      bits = lax.bitcast_convert_type(score_of(block, start), jnp.int32)
      return jnp.minimum(best, (bits & ~low_bits) | block)

    start = jnp.full(shape, (1 << 31) - 1, jnp.int32)
    best = lax.fori_loop(0, num_blocks, packed, start)
    low = jnp.min(best, axis=1)
    place = lax.broadcasted_iota(jnp.int32, shape, 1)
    place = jnp.where(best == low[:, None], place, blocks.codes)
    outputs[0][mine] = (low & low_bits) * blocks.codes + jnp.min(place, axis=1)
    outputs[1][mine] = lax.bitcast_convert_type(low & ~low_bits, jnp.float32)
    return

  def body(block, carry):
    at, best, second = carry
    score = score_of(block, jnp.zeros(shape, jnp.float32))
    # Each place of the block has a best of its own: no reduction in here.
    better = score < best  # ties stay with the lower code
    second = jnp.minimum(second, jnp.maximum(best, score))
    return jnp.where(better, block, at), jnp.minimum(best, score), second

  far = jnp.full(shape, jnp.inf, jnp.float32)
  start = (jnp.zeros(shape, jnp.int32), far, far)
  at, best, second = lax.fori_loop(0, num_blocks, body, start)
  code = at * blocks.codes + lax.broadcasted_iota(jnp.int32, shape, 1)
  low = jnp.min(best, axis=1)
  is_low = best == low[:, None]
  found = jnp.min(jnp.where(is_low, code, codes[0].shape[0]), axis=1)
  outputs[0][mine] = found
  outputs[1][mine] = low
  outputs[2][mine] = length
  others = jnp.where(code == found[:, None], second, best)
  outputs[3][mine] = jnp.min(others, axis=1)


def best_two(
  x: jax.Array,
  codebook: jax.Array,
  shift: jax.Array,
  *,
  parts: int,
  blocks: Blocks | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, ...]:
  """Runs the kernel.

  Args:
    x: Rows [N, D], as many as a block has or more.
    codebook: float32 [K, D], shifted.
    shift: float32 [D], to be subtracted from rows.
    parts: bfloat16 numbers that stand for a float32: 1 or 2.
    blocks: Sizes, by default those that measured best.
    interpret: Runs in plain JAX, for tests without a GPU.

  Returns:
    With one part the code [N] and the squared distance [N], cut off to the
    bits that the block number leaves. With two parts the code [N], its score
    |c|^2 - 2 x.c [N], squared length [N] and second best score [N], all of
    shifted rows.
  """
  num_rows, width = x.shape
  blocks = _suited(width, parts) if blocks is None else blocks
  padded = max(16, pl.next_power_of_2(width))
  if width > _PIECE:
    padded = width + -width % _PIECE
  columns = (0, padded - width)
  norms = jnp.sum(jnp.square(codebook), axis=-1)
  extra = (0, -codebook.shape[0] % blocks.codes)
  norms = jnp.pad(norms, extra, constant_values=jnp.inf)
  codes = split(jnp.pad(-2.0 * codebook, (extra, columns)))[:parts]
  if padded > width:
    x, shift = jnp.pad(x, ((0, 0), columns)), jnp.pad(shift, columns)
  numbers = [jnp.int32, *[jnp.float32] * (1 if parts == 1 else 3)]
  results = [jax.ShapeDtypeStruct((num_rows,), n) for n in numbers]
  return pl.pallas_call(
    functools.partial(
      _kernel, num_parts=parts, num_rows=num_rows, blocks=blocks
    ),
    grid=(-(-num_rows // blocks.rows),),
    in_specs=[pallas_gpu.whole(a) for a in (x, shift, norms, *codes)],
    out_specs=[pallas_gpu.whole(a) for a in results],
    out_shape=results,
    **pallas_gpu.options(
      blocks.num_warps, blocks.num_stages, interpret=interpret
    ),
  )(x, shift, norms, *codes)


def _suited(width: int, parts: int) -> Blocks:
  """Returns blocks for a width; measured in docs/balanced_kmeans.md."""
  if width > _PIECE:
    return Blocks(num_stages=2)
  return Blocks(rows=128 if parts == 1 else 64, num_warps=4)


def codes_as_plain(
  x: jax.Array,
  codebook: jax.Array,
  shift: jax.Array,
  plain: Callable[[jax.Array, jax.Array], jax.Array],
  *,
  find: Callable[..., tuple[jax.Array, ...]],
  cut_off: float,
  interpret: bool = False,
) -> jax.Array:
  """Finds the codes that the plain form finds in float32.

  Args:
    x: Rows [N, D].
    codebook: float32 [K, D], shifted so that lengths are small.
    shift: float32 [D], to be subtracted from rows.
    plain: Codes of shifted rows by the plain form.
    find: `best_two` of a kernel.
    cut_off: The share of a score that the kernel cuts off, at most.
    interpret: As for `best_two`.

  Returns:
    int32 [N].
  """
  num_rows, width = x.shape
  code, best, length, second = find(
    x, codebook, shift, parts=2, interpret=interpret
  )
  # Two parts leave out 2^-16 of either factor and the product of the small
  # ones; sums of 3 D products round, in both forms.
  unit = 3 * 2.0**-16 + (4 * width + 32) * 2.0**-22
  longest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(codebook), axis=-1)))
  error = 2 * unit * jnp.sqrt(length) * longest + unit * jnp.square(longest)
  unsure = second - best <= 2 * error + cut_off * jnp.abs(best)
  size = min(_AGAIN, num_rows)
  # Unsure rows one after the other; places of the others are past the end.
  rank = jnp.cumsum(unsure, dtype=jnp.int32)
  row = jnp.arange(num_rows, dtype=jnp.int32)
  place = jnp.where(unsure, rank - 1, num_rows + size + row)
  which = jnp.full((num_rows + size,), num_rows, jnp.int32)
  which = which.at[place].set(row, mode="drop", unique_indices=True)

  def body(step, code):
    index = lax.dynamic_slice_in_dim(which, step * size, size)
    rows = x.at[index].get(mode="clip").astype(jnp.float32)
    again = plain(rows - shift[None, :], codebook)
    return code.at[index].set(again, mode="drop")

  return lax.fori_loop(0, -(-rank[-1] // size), body, code)
