"""Targets that are text neighbors of what a user chose last.

A next item is one draw from what a user might have chosen, and most pairs of
items are never seen together. So a share of the targets is drawn anew at every
visit from the text neighbors of the item before: label smoothing (Szegedy et
al. 2016, arXiv:1512.00567, section 7) over items alike instead of over all.
The network learns who is whose neighbor as exactly as its semantic IDs can say
it, and not only as finely as neighbors share codes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int32

from gr_jax.core import checks, progress
from gr_jax.embeddings.normalization import unit_rows

_BLOCK_ELEMENTS = 1 << 26  # cosines held at once, 256 MB


def neighbor_table(
  vectors: Float32[np.ndarray, "N D"],
  *,
  temperature: float,
  num_neighbors: int = 50,
  num_draws: int = 64,
) -> Int32[np.ndarray, "N S"]:
  """Returns S equally likely draws from each item's neighbors.

  An item's neighbors weigh softmax(cosine / temperature); draw s is their
  quantile (s + 1/2) / S, nearest first, so that a neighbor fills as many of
  the S places as its weight says.

  Args:
    vectors: Of the items' texts.
    temperature: Of the softmax; lower keeps closer to the nearest.
    num_neighbors: Nearest items that are weighed, ties to the lowest index.
    num_draws: S.

  Raises:
    InputError: A single item, which has no neighbor.
  """
  num_items = vectors.shape[0]
  if num_items < 2:
    raise checks.InputError(
      "A catalog of one item has no text neighbors; set task.neighbor_share=0."
    )
  count = min(num_neighbors, num_items - 1)
  unit = jnp.asarray(unit_rows(vectors))
  size = min(num_items, max(1, _BLOCK_ELEMENTS // num_items))
  quantiles = (np.arange(num_draws) + 0.5) / num_draws
  rows = []
  with progress.bar("text neighbors", total=num_items, unit="item") as advance:
    for start in range(0, num_items, size):
      # The last block overlaps the one before: one shape, compiled once.
      first = min(start, num_items - size)
      cosine, nearest = jax.device_get(
        _nearest(unit, jnp.int32(first), size, count)
      )
      upper = np.cumsum(np.exp((cosine - cosine[:, :1]) / temperature), axis=1)
      upper = upper / upper[:, -1:]  # [C, n]
      column = np.sum(quantiles[None, :, None] > upper[:, None, :], axis=2)
      column = np.minimum(column, count - 1)[start - first :]  # [C, S]
      rows.append(np.take_along_axis(nearest[start - first :], column, axis=1))
      advance(column.shape[0])
  return np.concatenate(rows)


@functools.partial(jax.jit, static_argnames=("size", "count"))
def _nearest(
  unit: Float32[Array, "N D"], first: Int32[Array, ""], size: int, count: int
) -> tuple[Float32[Array, "C n"], Int32[Array, "C n"]]:
  """Returns the cosines and numbers of some items' nearest others."""
  items = first + jnp.arange(size, dtype=jnp.int32)  # [C]
  cosine = jnp.matmul(unit[items], unit.T, precision=lax.Precision.HIGHEST)
  others = jnp.arange(unit.shape[0], dtype=jnp.int32)
  cosine = jnp.where(items[:, None] == others[None], -jnp.inf, cosine)
  best, nearest = lax.top_k(cosine, count)
  return best, nearest


def draw(
  key: jax.Array,
  table: Int32[Array, "N S"],
  history: Int32[Array, "B H"],
  newest: Int32[Array, "B P"],
  following: Int32[Array, "B P"],
  *,
  share: float,
) -> Int32[Array, "B P"]:
  """Returns targets, some of them replaced by neighbors.

  Args:
    key: Of this batch.
    table: From `neighbor_table`.
    history: Items, oldest first.
    newest: Place in the history of the item before each target; where it is
      negative the target is left alone.
    following: The items that were chosen.
    share: Probability of a neighbor.

  Returns:
    `following`, with probability `share` a neighbor of the item before. One
    that the history up to there holds already is not taken.
  """
  coin_key, draw_key = jax.random.split(key)
  before = jnp.take_along_axis(history, jnp.maximum(newest, 0), axis=1)
  column = jax.random.randint(draw_key, newest.shape, 0, table.shape[1])
  neighbor = table[before, column]  # [B, P]
  slots = jnp.arange(history.shape[1], dtype=jnp.int32)
  known = slots[None, None] <= newest[:, :, None]  # [B, P, H]
  is_known = jnp.any(
    known & (neighbor[:, :, None] == history[:, None, :]), axis=2
  )
  wanted = jax.random.bernoulli(coin_key, share, newest.shape)
  return jnp.where(wanted & ~is_known & (newest >= 0), neighbor, following)
