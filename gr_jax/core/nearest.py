"""Squared distances and nearest codes: the only place a code is chosen.

Whatever ends in an argmin is computed in float32 with matmuls of the highest
precision by default, so that an item's codes do not depend on the hardware.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.core import nearest_hopper, nearest_kernel
from gr_jax.core.precision import row_dots

# Elements of one [chunk, K] block of distances: 16 MB of float32 stay in a
# CPU's cache; an accelerator wants few, large kernels.
_BLOCK_ELEMENTS = 1 << 22
_LARGE_BLOCK_ELEMENTS = 1 << 27


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class Nearest:
  """What `nearest` found for every row."""

  codes: jax.Array  # int32 [N], ties go to the lowest code
  squared_distance: jax.Array  # float32 [N], to that code


def squared_distances(
  x: Float[Array | np.ndarray, "N D"],
  codebook: Float[Array | np.ndarray, "K D"],
  *,
  centered: bool = True,
) -> Float[Array, "N K"]:
  """Computes |x_n - e_k|^2 for every row and code, in float32.

  Both sides are shifted by the codebook's mean first: distances do not change,
  and |x|^2 - 2 x.e + |e|^2 no longer cancels for data far from the origin.

  Args:
    x: Rows.
    codebook: Codes.
    centered: False leaves out the shift: distances between rows and codes of
      small whole numbers are then exact.

  Returns:
    Non-negative float32 [N, K]. The whole matrix: use `nearest` for large N.
  """
  x, codebook = _operands(jnp.asarray(x), jnp.asarray(codebook), centered)
  return _distances(x, _scores(x, codebook))


def nearest(
  x: Float[Array | np.ndarray, "N D"],
  codebook: Float[Array | np.ndarray, "K D"],
  *,
  chunk_size: int | None = None,
  centered: bool = True,
  precision: str = "float32",
  fused: bool = False,
) -> Nearest:
  """Finds the nearest code of every row and the squared distance to it.

  Args:
    x: Rows.
    codebook: Codes.
    chunk_size: Rows whose [chunk_size, K] distances are held at once; by
      default as many as make 16 MB on a CPU, 512 MB elsewhere.
    centered: As for `squared_distances`. The shift costs two small kernels,
      which training on latents around zero can spare.
    precision: Of the dot products, static; see `core.precision`. Anything
      but float32 changes some codes.
    fused: Uses the kernels of `core.nearest_hopper` or `core.nearest_kernel`
      on NVIDIA GPUs, static, for float32 and bfloat16, rows enough and widths
      that they know; the codes are those of the plain form.

  Returns:
    Codes (ties to the lowest) and squared distances.
  """
  x, codebook = jnp.asarray(x), jnp.asarray(codebook)
  num_rows, num_codes = x.shape[0], codebook.shape[0]
  find = functools.partial(_nearest, centered=centered, precision=precision)
  parts = {"float32": 2, "bfloat16": 1}.get(precision)
  if fused and parts is not None:
    size = (num_rows, num_codes, x.shape[1])
    kernel = _kernel_for(*size, parts=parts)
    if kernel is not None:
      other = functools.partial(
        nearest,
        chunk_size=chunk_size,
        centered=centered,
        precision=precision,
      )
      fused = functools.partial(
        _nearest_fused, kernel, centered=centered, precision=precision
      )
      return lax.platform_dependent(x, codebook, cuda=fused, default=other)
  if chunk_size is not None:
    return find(x, codebook, chunk_size)
  small = max(8, _BLOCK_ELEMENTS // num_codes)
  large = max(8, _LARGE_BLOCK_ELEMENTS // num_codes)
  if num_rows <= small:
    return find(x, codebook, small)
  return lax.platform_dependent(
    x,
    codebook,
    cpu=lambda x, codebook: find(x, codebook, small),
    default=lambda x, codebook: find(x, codebook, large),
  )


def _kernel_for(
  num_rows: int, num_codes: int, width: int, *, parts: int
) -> ModuleType | None:
  """The fastest kernel of the device; None where there is none, or no need."""
  if not nearest_kernel.is_worth(num_rows, num_codes):
    return None
  for kernel in (nearest_hopper, nearest_kernel):
    if kernel.supports(num_codes, width, parts=parts):
      return kernel
  return None


def _nearest_fused(
  kernel: ModuleType,
  x: jax.Array,
  codebook: jax.Array,
  *,
  centered: bool,
  precision: str,
  interpret: bool = False,
) -> Nearest:
  """`nearest` by the kernel."""

  codes, shift = _shifted(codebook, centered)
  if precision == "bfloat16":
    found, distance = kernel.best_two(
      x, codes, shift, parts=1, interpret=interpret
    )
    return Nearest(codes=found, squared_distance=jnp.maximum(distance, 0.0))
  found = nearest_kernel.codes_as_plain(
    x,
    codes,
    shift,
    functools.partial(nearest_code, centered=False),
    find=kernel.best_two,
    cut_off=kernel.cut_off(codes.shape[0]),
    interpret=interpret,
  )
  error = x.astype(jnp.float32) - shift[None, :] - codes[found]
  return Nearest(
    codes=found, squared_distance=jnp.sum(jnp.square(error), axis=-1)
  )


def _nearest(
  x: jax.Array,
  codebook: jax.Array,
  chunk_size: int,
  *,
  centered: bool,
  precision: str,
) -> Nearest:
  """`nearest` with chunks of a given size."""

  def block(rows: jax.Array) -> Nearest:
    rows, codes = _operands(rows, codebook, centered)
    scores = _scores(rows, codes, precision)  # [chunk, K]
    best = jnp.min(scores, axis=-1, keepdims=True)  # [chunk, 1]
    return Nearest(
      codes=lax.platform_dependent(
        scores, best, cpu=_first_equal, default=_argmin
      ),  # [chunk]
      squared_distance=_distances(rows, best)[:, 0],
    )

  return _in_chunks(block, x, chunk_size)


def _in_chunks(
  block: Callable[[jax.Array], Nearest], x: jax.Array, chunk_size: int
) -> Nearest:
  """Finds the nearest codes of some rows at a time."""
  num_rows = x.shape[0]
  if num_rows <= chunk_size:
    return block(x)

  def body(step: jax.Array, out: Nearest) -> Nearest:
    # The last chunk starts early and rewrites rows with the same values: no
    # padded copy of x.
    start = jnp.minimum(step * chunk_size, num_rows - chunk_size)
    found = block(lax.dynamic_slice_in_dim(x, start, chunk_size))
    return jax.tree.map(
      lambda whole, part: lax.dynamic_update_slice_in_dim(
        whole, part, start, axis=0
      ),
      out,
      found,
    )

  empty = Nearest(
    codes=jnp.zeros((num_rows,), jnp.int32),
    squared_distance=jnp.zeros((num_rows,), jnp.float32),
  )
  return lax.fori_loop(0, -(-num_rows // chunk_size), body, empty)


def nearest_code(
  x: Float[Array | np.ndarray, "N D"],
  codebook: Float[Array | np.ndarray, "K D"],
  *,
  chunk_size: int | None = None,
  centered: bool = True,
  precision: str = "float32",
  fused: bool = False,
) -> Int32[Array, " N"]:
  """Finds the nearest code of every row; see `nearest`.

  >>> import jax.numpy as jnp
  >>> nearest_code(jnp.array([[0.0], [9.0]]), jnp.array([[1.0], [8.0]]))
  Array([0, 1], dtype=int32)
  """
  return nearest(
    x,
    codebook,
    chunk_size=chunk_size,
    centered=centered,
    precision=precision,
    fused=fused,
  ).codes


def _argmin(scores: jax.Array, _: jax.Array) -> jax.Array:
  """The lowest code of the best score, in one read of the scores."""
  return jnp.argmin(scores, axis=-1).astype(jnp.int32)


def _first_equal(scores: jax.Array, best: jax.Array) -> jax.Array:
  """`_argmin` by two plain reductions: XLA vectorizes them on CPUs."""
  last = scores.shape[-1] - 1
  code = jnp.arange(last + 1, dtype=jnp.int32)[None, :]
  return jnp.min(jnp.where(scores == best, code, last), axis=-1)


def _operands(
  x: jax.Array, codebook: jax.Array, centered: bool
) -> tuple[jax.Array, jax.Array]:
  """Both sides in float32, shifted by the codebook's mean if wanted."""
  codes, shift = _shifted(codebook, centered)
  return x.astype(jnp.float32) - shift[None, :], codes


def _shifted(
  codebook: jax.Array, centered: bool
) -> tuple[jax.Array, jax.Array]:
  """Codes in float32 without their mean if wanted, and what was subtracted."""
  codebook = codebook.astype(jnp.float32)
  shift = jnp.zeros(codebook.shape[1:], jnp.float32)
  if centered:
    shift = jnp.mean(codebook, axis=0)
  return codebook - shift[None, :], shift


def _scores(
  x: jax.Array, codebook: jax.Array, precision: str = "float32"
) -> jax.Array:
  """|e|^2 - 2 x.e, [N, K]: what decides the argmin.

  |x|^2 is the same for all codes of a row and must not round away the
  difference between them.
  """
  dots = row_dots(x, codebook, precision)  # [N, K]
  return jnp.sum(jnp.square(codebook), axis=-1)[None, :] - 2.0 * dots


def _distances(x: jax.Array, scores: jax.Array) -> jax.Array:
  """Adds |x|^2 to scores; rounding must not leave a distance below zero."""
  norms = jnp.sum(jnp.square(x), axis=-1)[:, None]  # [N, 1]
  return jnp.maximum(norms + scores, 0.0)
