"""Texts beside what is chosen together: content and collaborative signal."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jaxtyping import Float32

from gr_jax.core import rng
from gr_jax.core.checks import InputError
from gr_jax.data import splits
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.data.interactions import Interactions
from gr_jax.data.splits import Split
from gr_jax.embeddings import files
from gr_jax.embeddings.normalization import unit_rows
from gr_jax.embeddings.table import EmbeddingTable

# Contexts count by their frequency to this power (Levy et al. 2015, 3.2).
_CONTEXT_SMOOTHING = 0.75
# Text neighbors that stand in for an item that no one chose yet.
_NUM_NEIGHBORS = 10
_CHUNK = 1 << 12  # items whose text neighbors are sought at once


@dataclasses.dataclass(frozen=True)
class TextAndCoOccurrence(files.Precomputed):
  """Vectors from a file, and beside them what the items are chosen with.

  The second part is the truncated SVD of the positive pointwise mutual
  information of items that stand close in a training history (Levy and
  Goldberg 2014, equation 11; Levy, Goldberg and Dagan 2015, sections 3.1 to
  3.3), rows of unit length times `weight`. An item in no training history
  gets the mean row of its nearest neighbors by text, and so does a new item.
  Only the training part of leave-one-out histories is read.

  Attributes:
    co_occurrence_dim: Width of the second part.
    weight: Its rows' length; the text's rows are as `normalization` says.
    window: Items at most this many places apart are chosen together, 1 / that
      distance times.
  """

  co_occurrence_dim: int = 128
  weight: float = 1.0
  window: int = 3

  reads_files: ClassVar[bool] = True

  def __post_init__(self):
    """Refuses impossible options."""
    if self.co_occurrence_dim < 1 or self.window < 1 or self.weight <= 0:
      raise InputError(
        "embedding needs co_occurrence_dim and window of 1 or more and weight "
        f"> 0; got {self.co_occurrence_dim}, {self.window}, {self.weight}."
      )

  def embed(self, dataset: Dataset, *, key: jax.Array) -> EmbeddingTable:
    """Reads the file and computes the second part.

    Raises:
      InputError: As `Precomputed.embed`, or fewer items than
        `co_occurrence_dim` + 1.
    """
    text = super().embed(dataset, key=key)
    if text.num_items <= self.co_occurrence_dim:
      raise InputError(
        f"embedding.co_occurrence_dim={self.co_occurrence_dim} must be below "
        f"the number of items, {text.num_items}."
      )
    counts = co_occurrences(
      dataset.interactions,
      splits.leave_one_out(dataset.interactions),
      num_items=text.num_items,
      window=self.window,
    )
    generator = rng.numpy_generator(key, "co_occurrence")
    rows = _factorize(counts, self.co_occurrence_dim, generator)
    known = np.asarray(counts.sum(axis=1)).ravel() > 0
    rows[~known] = _of_neighbors(
      text.vectors[~known], text.vectors[known], rows[known]
    )
    vectors = np.concatenate([text.vectors, _scaled(rows, self.weight)], axis=1)
    return dataclasses.replace(text, vectors=vectors)

  def embed_new(
    self,
    table: EmbeddingTable,
    catalog: ItemCatalog,
    *,
    path: str = "",
  ) -> EmbeddingTable:
    """Reads the new items' file; their second part is their neighbors'.

    Raises:
      InputError: As `Precomputed.embed_new`.
    """
    new = super().embed_new(table, catalog, path=path)
    width = table.embedding_dim - self.co_occurrence_dim
    text, rows = table.vectors[:, :width], table.vectors[:, width:]
    found = _of_neighbors(new.vectors, text, rows)
    vectors = np.concatenate([new.vectors, _scaled(found, self.weight)], axis=1)
    return dataclasses.replace(new, vectors=vectors)


def text_vectors(
  embedder: object, table: EmbeddingTable
) -> Float32[np.ndarray, "N D"]:
  """Returns the part of the items' vectors that is text alone."""
  if isinstance(embedder, TextAndCoOccurrence):
    return table.vectors[:, : -embedder.co_occurrence_dim]
  return table.vectors


def co_occurrences(
  interactions: Interactions, split: Split, *, num_items: int, window: int
) -> scipy.sparse.csr_matrix:
  """Counts pairs of items that stand close in a training history.

  Args:
    interactions: The histories.
    split: Says which part of each is for training.
    num_items: N.
    window: Pairs up to this far apart count, 1 / their distance.

  Returns:
    A symmetric float64 [N, N] matrix.
  """
  place = np.arange(interactions.num_interactions)
  user = np.searchsorted(interactions.offsets, place, side="right") - 1
  trained = place < split.train_end[user]
  total = scipy.sparse.csr_matrix((num_items, num_items))
  for distance in range(1, window + 1):
    same = user[distance:] == user[:-distance]
    first = np.flatnonzero(same & trained[distance:])
    pair = interactions.items[first], interactions.items[first + distance]
    weights = np.full(first.size, 1.0 / distance)
    total += scipy.sparse.csr_matrix((weights, pair), total.shape)
  return total + total.T


def _factorize(
  counts: scipy.sparse.csr_matrix, dim: int, generator: np.random.Generator
) -> Float32[np.ndarray, "N d"]:
  """Returns the left singular vectors times the roots of the values."""
  entries = counts.tocoo()
  frequency = np.asarray(counts.sum(axis=1)).ravel()
  context = frequency**_CONTEXT_SMOOTHING
  expected = frequency[entries.row] * context[entries.col] / context.sum()
  information = np.maximum(np.log(entries.data / expected), 0.0)
  matrix = scipy.sparse.csr_matrix(
    (information, (entries.row, entries.col)), counts.shape
  )
  start = generator.standard_normal(counts.shape[0])
  u, values, _ = scipy.sparse.linalg.svds(matrix, k=dim, v0=start)
  return (u * np.sqrt(values)).astype(np.float32)


def _of_neighbors(
  queries: Float32[np.ndarray, "M D"],
  text: Float32[np.ndarray, "N D"],
  rows: Float32[np.ndarray, "N d"],
) -> Float32[np.ndarray, "M d"]:
  """Returns the mean unit row of each query's nearest texts, by cosine."""
  queries, text, rows = (unit_rows(x) for x in (queries, text, rows))
  count = min(_NUM_NEIGHBORS, text.shape[0])
  means = []
  for start in range(0, queries.shape[0], _CHUNK):
    similarity = queries[start : start + _CHUNK] @ text.T  # [m, N]
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    means.append(rows[nearest].mean(axis=1))
  return np.concatenate(means) if means else rows[:0]


def _scaled(
  x: Float32[np.ndarray, "N D"], length: float
) -> Float32[np.ndarray, "N D"]:
  norms = np.linalg.norm(x, axis=1, keepdims=True)
  return x * np.float32(length) / np.maximum(norms, np.float32(1e-12))
