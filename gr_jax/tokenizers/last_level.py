"""Distances of items to every code of the last level, for any tokenizer."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from gr_jax.tokenizers import base

_CHUNK_ROWS = 1 << 14
_DECODED_ELEMENTS = 1 << 24  # of one block of decoded rows: 64 MB


def distances(
  tokenizer: base.Tokenizer,
  state: base.State,
  x: Float[Array | np.ndarray, "N D"],
  codes: Int32[np.ndarray, "N L"],
) -> Float32[np.ndarray, "N K"]:
  """Returns how far each item is from each last-level code.

  A tokenizer with `last_level_distances` measures residuals; of any other
  the distances |x - decode(c_0, ..., c_{L-2}, k)|^2 are taken, which for
  residual codes are the same number.

  Args:
    tokenizer: Any tokenizer.
    state: Its state.
    x: Rows.
    codes: Their codes; the last level's are not read.
  """
  num_rows, size = x.shape[0], tokenizer.codebook_sizes[-1]
  result = np.empty((num_rows, size), np.float32)
  own = getattr(tokenizer, "last_level_distances", None)
  chunk = _CHUNK_ROWS
  if own is None:
    chunk = max(1, _DECODED_ELEMENTS // (size * x.shape[1]))
  # Powers of two, the last row repeated: few shapes are ever compiled.
  chunk = min(chunk, 1 << max(0, num_rows - 1).bit_length())
  for start in range(0, num_rows, chunk):
    rows = np.minimum(np.arange(start, start + chunk), num_rows - 1)
    if own is not None:
      found = own(state, x[rows], codes[rows])
    else:
      found = _by_decoding(tokenizer, state, x[rows], codes[rows])
    result[start : start + chunk] = np.asarray(found)[: num_rows - start]
  return result


def _by_decoding(tokenizer, state, x, codes):
  size = tokenizer.codebook_sizes[-1]
  tried = np.repeat(codes, size, axis=0)  # [B * K, L]
  tried[:, -1] = np.tile(np.arange(size, dtype=np.int32), codes.shape[0])
  decoded = tokenizer.decode(state, jnp.asarray(tried))
  decoded = decoded.reshape(codes.shape[0], size, -1)  # [B, K, D]
  return jnp.sum(jnp.square(jnp.asarray(x)[:, None, :] - decoded), axis=-1)
