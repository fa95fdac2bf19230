"""Items near a user's history in embedding space: what semantic IDs replace.

The query is the mean of the unit vectors of the history's items, each weighted
by recency ** (steps before the newest); recency 0 is the newest item alone.
Items are ranked by cosine to it, without those of the history.
"""

import importlib.util
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int, Int32

from gr_jax.core import checks
from gr_jax.embeddings.normalization import unit_rows

# Links an item, and candidates looked at while building and searching, of
# Malkov and Yashunin 2016 (arXiv:1603.09320): M, efConstruction, efSearch.
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 200, 128


class Index(Protocol):
  """Embeddings that were made ready to be searched."""

  def search(
    self, histories: Int32[np.ndarray, "U R"]
  ) -> Int32[np.ndarray, "U W"]:
    """Ranks items for histories, oldest first, -1 filling the rows."""
    ...


def weights(
  histories: Int[Array | np.ndarray, "U R"], recency: float
) -> Float32[Array, "U R"]:
  """Returns the weight of every item of each history; 0 for filling."""
  is_item = histories >= 0
  length = jnp.sum(is_item, axis=1, keepdims=True)  # [U, 1]
  age = length - 1 - jnp.arange(histories.shape[1])[None]
  weight = jnp.power(jnp.float32(recency), age.astype(jnp.float32))
  return jnp.where(is_item, weight, jnp.float32(0))


class BruteForce:
  """Compares with every item, on the default device."""

  def __init__(
    self,
    vectors: Float32[np.ndarray, "N D"],
    can_come: Bool[np.ndarray, "N"],
    *,
    recency: float,
    list_size: int,
  ):
    """Moves the unit vectors to the device.

    Args:
      vectors: Of all items.
      can_come: Items that may be returned.
      recency: Weight of an item relative to the next newer one.
      list_size: W, items to return.

    Raises:
      InputError: Recency outside [0, 1], or a list longer than the catalog.
    """
    _check(recency, list_size, int(can_come.sum()))
    self._vectors = jnp.asarray(unit_rows(vectors))
    self._bias = jnp.where(jnp.asarray(can_come), 0.0, -jnp.inf)
    # jit once: a search per batch must not compile again.
    self._search = jax.jit(
      lambda vectors, bias, histories: _nearest(
        vectors, bias, histories, recency, list_size
      )
    )

  def search(
    self, histories: Int32[np.ndarray, "U R"]
  ) -> Int32[np.ndarray, "U W"]:
    """Ranks items; -1 where fewer are left."""
    return np.asarray(
      self._search(self._vectors, self._bias, jnp.asarray(histories))
    )


def _nearest(vectors, bias, histories, recency, list_size):
  queries = jnp.einsum(
    "ur,urd->ud",
    weights(histories, recency),
    vectors[jnp.maximum(histories, 0)],
    precision="highest",
  )
  scores = jnp.matmul(queries, vectors.T, precision="highest") + bias[None]
  row = jnp.arange(histories.shape[0])[:, None]
  # Filling is dropped: an index past the end.
  item = jnp.where(histories >= 0, histories, vectors.shape[0])
  scores = scores.at[row, item].set(-jnp.inf, mode="drop")
  best, index = jax.lax.top_k(scores, list_size)
  return jnp.where(best > -jnp.inf, index, -1)


class Hnsw:
  """A graph of near items (faiss), on the CPU; approximate."""

  def __init__(
    self,
    vectors: Float32[np.ndarray, "N D"],
    can_come: Bool[np.ndarray, "N"],
    *,
    recency: float,
    list_size: int,
  ):
    """Builds the graph; arguments as for `BruteForce`.

    Raises:
      InputError: As `BruteForce`, or faiss is not installed.
    """
    _check(recency, list_size, int(can_come.sum()))
    if not has_hnsw():
      raise checks.InputError("HNSW needs faiss; pip install faiss-cpu.")
    import faiss

    self._vectors = unit_rows(vectors)
    self._items = np.flatnonzero(can_come).astype(np.int32)
    self._recency, self._list_size = recency, list_size
    self._index: Any = faiss.IndexHNSWFlat(
      vectors.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT
    )
    self._index.hnsw.efConstruction = HNSW_BUILD
    self._index.add(self._vectors[self._items])

  def search(
    self, histories: Int32[np.ndarray, "U R"]
  ) -> Int32[np.ndarray, "U W"]:
    """Ranks items; -1 where fewer were found."""
    weight = np.asarray(weights(histories, self._recency))
    queries = np.einsum("ur,urd->ud", weight, self._vectors[histories])
    # Enough that the history's items can be taken out.
    count = min(self._list_size + histories.shape[1], self._items.size)
    self._index.hnsw.efSearch = max(HNSW_SEARCH, count)
    _, place = self._index.search(queries.astype(np.float32), count)
    found = np.where(place >= 0, self._items[place], np.int32(-1))
    had = np.any(found[:, :, None] == histories[:, None, :], axis=2)
    found = np.where(had, np.int32(-1), found)
    # Those that are left move up, in their order.
    order = np.argsort(found < 0, axis=1, kind="stable")
    found = np.take_along_axis(found, order, axis=1)[:, : self._list_size]
    short = self._list_size - found.shape[1]
    return np.pad(found, ((0, 0), (0, short)), constant_values=-1)


def has_hnsw() -> bool:
  """Whether faiss is installed."""
  return importlib.util.find_spec("faiss") is not None


def _check(recency, list_size, num_items):
  if not 0 <= recency <= 1:
    raise checks.InputError(
      f"recency={recency} must lie between 0 (newest item) and 1 (plain mean)."
    )
  if not 1 <= list_size <= num_items:
    raise checks.InputError(
      f"Lists of {list_size} items from {num_items}; ask for 1 to {num_items}."
    )
