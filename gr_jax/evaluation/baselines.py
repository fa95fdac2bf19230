"""Counters that need no training, on the split a model is judged on.

A model that does not beat these has not earned its training time. All of them
learn from the training part of the split alone (no validation or test item)
and score the full history of a held-out example. Equal scores, and items a
scorer knows nothing about, stand in order of popularity, then of item index.

Every baseline is a frozen dataclass whose `fit` returns a `Scorer`.
"""

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int, Int32

from gr_jax.core import checks, progress
from gr_jax.core.checks import InputError
from gr_jax.data.interactions import Interactions
from gr_jax.data.splits import Examples, Split
from gr_jax.evaluation.metrics import NOT_RETURNED

_CHUNK_ELEMENTS = 1 << 21  # scores held at once: 16 MiB of float64


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
  """Items of several users in one flat array, oldest first."""

  items: Int32[np.ndarray, "n"]
  offsets: Int[np.ndarray, "n_ends"]  # [B + 1]

  @classmethod
  def create(
    cls, interactions: Interactions, examples: Examples
  ) -> "Histories":
    """Returns the whole history of every example, its target left out.

    Raises:
      InputError: An example without history.
    """
    lengths = examples.target_position - examples.history_start
    empty = np.flatnonzero(lengths < 1)
    if empty.size:
      user = interactions.user_ids[examples.user_index[empty[0]]]
      raise InputError(
        f"{empty.size} examples have no history, the first is of user "
        f"{user!r}; drop them, nothing can be recommended from nothing."
      )
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    shift = np.repeat(examples.history_start - offsets[:-1], lengths)
    return cls(interactions.items[np.arange(offsets[-1]) + shift], offsets)

  @property
  def num_users(self) -> int:
    """B."""
    return self.offsets.size - 1

  @property
  def lengths(self) -> Int[np.ndarray, "B"]:
    """Items of each history."""
    return np.diff(self.offsets)

  @property
  def last(self) -> Int32[np.ndarray, "B"]:
    """The newest item of each history."""
    return self.items[self.offsets[1:] - 1]

  @property
  def rows(self) -> Int[np.ndarray, "n"]:
    """The row that each item belongs to."""
    return np.repeat(np.arange(self.num_users), self.lengths)

  def take(self, rows: Int[np.ndarray, "C"]) -> "Histories":
    """Returns the histories at `rows`, in that order."""
    lengths = self.lengths[rows]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    shift = np.repeat(self.offsets[rows] - offsets[:-1], lengths)
    return Histories(self.items[np.arange(offsets[-1]) + shift], offsets)

  def weights(self, recency: float, num_items: int) -> scipy.sparse.csr_matrix:
    """Returns [B, N] with recency ** (steps before the newest item)."""
    age = np.repeat(self.offsets[1:], self.lengths) - 1
    age = age - np.arange(self.items.size)
    if recency == 0.0:  # 0 ** 0 = 1: the newest item alone
      shape = (self.num_users, num_items)
      newest = np.ones(self.num_users), (np.arange(self.num_users), self.last)
      return scipy.sparse.csr_matrix(newest, shape)
    return scipy.sparse.csr_matrix(
      (np.power(recency, age), self.items, self.offsets),
      shape=(self.num_users, num_items),
    )


@runtime_checkable
class Scorer(Protocol):
  """A fitted baseline."""

  # int32 [N], each item's place when all are sorted by popularity
  tie_rank: np.ndarray
  # Whether an item's score depends on which others are removed.
  reranks: bool

  def score(
    self, histories: Histories, *, remove_history: bool = False
  ) -> Float[np.ndarray, "B N"]:
    """Scores every item for every history, higher is better.

    -inf where an item is not to be returned at all: one's own history when
    `remove_history`, and what the scorer itself leaves out.
    """


@dataclasses.dataclass(frozen=True)
class Popularity:
  """Counts in the training part."""

  label: ClassVar[str] = "popularity"
  needs_vectors: ClassVar[bool] = False

  def fit(
    self,
    interactions: Interactions,
    split: Split,
    *,
    num_items: int,
    vectors: Float[np.ndarray, "N D"] | None = None,
  ) -> Scorer:
    """Counts; `vectors` are not used."""
    del vectors
    counts, tie_rank = _popularity(interactions, split, num_items)
    return _Constant(counts, tie_rank)


@dataclasses.dataclass(frozen=True)
class Markov:
  """First-order chain on the last item: how often j followed i directly."""

  label: ClassVar[str] = "Markov (last item)"
  needs_vectors: ClassVar[bool] = False

  def fit(
    self,
    interactions: Interactions,
    split: Split,
    *,
    num_items: int,
    vectors: Float[np.ndarray, "N D"] | None = None,
  ) -> Scorer:
    """Counts adjacent pairs; `vectors` are not used."""
    del vectors
    trained = _trained(interactions, split)
    user = interactions.user_index
    pair = trained[:-1] & trained[1:] & (user[:-1] == user[1:])
    items = interactions.items
    counts = _count_pairs(items[:-1][pair], items[1:][pair], num_items)
    _, tie_rank = _popularity(interactions, split, num_items)
    return _ItemToItem(counts, 0.0, tie_rank)


@dataclasses.dataclass(frozen=True)
class ItemKnn:
  """Item-to-item cosine of who chose them, summed over the history.

  score(j) = sum_i recency ** age(i) * c_ij / sqrt(c_i c_j), c_ij the users
  who chose both (0 for i = j), age 0 for the newest item (Sarwar et al. 2001
  with a recency weight).

  Attributes:
    recency: Weight of an item relative to the next newer one.
  """

  recency: float = 0.7
  label: ClassVar[str] = "item-kNN"
  needs_vectors: ClassVar[bool] = False

  def __post_init__(self):
    """Refuses weights that grow or turn negative with age."""
    if not 0.0 < self.recency <= 1.0:
      raise InputError(
        f"item_knn recency={self.recency} must lie in (0, 1]; 1 weighs all "
        "items alike."
      )

  def fit(
    self,
    interactions: Interactions,
    split: Split,
    *,
    num_items: int,
    vectors: Float[np.ndarray, "N D"] | None = None,
  ) -> Scorer:
    """Counts pairs within a user; `vectors` are not used."""
    del vectors
    trained = _trained(interactions, split)
    matrix = _count_pairs(
      interactions.user_index[trained],
      interactions.items[trained],
      num_items,
      num_rows=interactions.num_users,
    )
    matrix.data[:] = 1.0  # a user counts once however often they came back
    counts = np.asarray(matrix.sum(axis=0)).reshape(-1)
    together = (matrix.T @ matrix).tocsr()
    together.setdiag(0.0)
    together.eliminate_zeros()
    scale = scipy.sparse.diags(np.maximum(counts, 1.0) ** -0.5)
    _, tie_rank = _popularity(interactions, split, num_items)
    similarity = scipy.sparse.csr_matrix(scale @ together @ scale)
    return _ItemToItem(similarity, self.recency, tie_rank)


@dataclasses.dataclass(frozen=True)
class TextNeighbors:
  """Cosine between item embeddings and that of the last item, left out."""

  label: ClassVar[str] = "text neighbors (last item)"
  needs_vectors: ClassVar[bool] = True

  def fit(
    self,
    interactions: Interactions,
    split: Split,
    *,
    num_items: int,
    vectors: Float[np.ndarray, "N D"] | None = None,
  ) -> Scorer:
    """Normalizes the vectors.

    Raises:
      InputError: No vectors, or not one finite float32 row an item.
    """
    if vectors is None:
      raise InputError(
        "text_neighbors needs item embeddings; pass the table's vectors or "
        "leave this baseline out."
      )
    checks.check_matrix("item embeddings", vectors)
    if vectors.shape[0] != num_items:
      raise InputError(
        f"{vectors.shape[0]} embeddings for {num_items} items; embed the same "
        "catalog."
      )
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(norm, np.finfo(np.float32).tiny)
    _, tie_rank = _popularity(interactions, split, num_items)
    return _Cosine(unit, tie_rank)


@dataclasses.dataclass(frozen=True)
class Fusion:
  """Reciprocal-rank fusion of Markov, item-kNN and text neighbors.

  score(j) = sum over the three of 1 / (rank_offset + rank of j), ranks from 0
  over the full catalog (Cormack, Clarke and Buettcher 2009). With the history
  removed, it is removed from each ranking before ranks are counted.

  Attributes:
    rank_offset: The constant of the formula; larger listens less to the top.
  """

  rank_offset: float = 60.0
  label: ClassVar[str] = "rank fusion of the last three"
  needs_vectors: ClassVar[bool] = True

  def __post_init__(self):
    """Refuses an offset that divides by zero."""
    if self.rank_offset <= 0:
      raise InputError(f"fusion rank_offset={self.rank_offset} must exceed 0.")

  def fit(
    self,
    interactions: Interactions,
    split: Split,
    *,
    num_items: int,
    vectors: Float[np.ndarray, "N D"] | None = None,
  ) -> Scorer:
    """Fits the three."""
    parts = tuple(
      part.fit(interactions, split, num_items=num_items, vectors=vectors)
      for part in (Markov(), ItemKnn(), TextNeighbors())
    )
    return _ReciprocalRanks(parts, self.rank_offset, parts[0].tie_rank)


BASELINES = {
  "popularity": Popularity,
  "item_knn": ItemKnn,
  "markov": Markov,
  "text_neighbors": TextNeighbors,
  "fusion": Fusion,
}


@dataclasses.dataclass(frozen=True, eq=False)
class TargetRanks:
  """Rank of each example's target from 0, -1 where it is not returned."""

  nothing_removed: Int[np.ndarray, "M"]
  history_removed: Int[np.ndarray, "M"]


def target_ranks(
  scorer: Scorer,
  histories: Histories,
  targets: Int[np.ndarray, "M"],
  *,
  description: str = "ranking",
) -> TargetRanks:
  """Ranks every target among all items, a chunk of examples at a time."""
  both = np.empty((2, targets.size), np.int64)
  # Neighbors in this order share last items, hence rows of the text scorer.
  order = np.argsort(histories.last, kind="stable")
  size = max(1, _CHUNK_ELEMENTS // scorer.tie_rank.size)
  with progress.bar(description, total=targets.size, unit="user") as advance:
    for start in range(0, targets.size, size):
      rows = order[start : start + size]
      chunk = histories.take(rows)
      scores = scorer.score(chunk)
      both[0, rows] = ranks_of(scores, targets[rows], scorer.tie_rank)
      if scorer.reranks:
        scores = scorer.score(chunk, remove_history=True)
      else:
        scores[chunk.rows, chunk.items] = -np.inf
      both[1, rows] = ranks_of(scores, targets[rows], scorer.tie_rank)
      advance(rows.size)
  return TargetRanks(nothing_removed=both[0], history_removed=both[1])


def evaluate_all(
  interactions: Interactions,
  split: Split,
  examples: Examples,
  *,
  num_items: int,
  vectors: Float[np.ndarray, "N D"] | None = None,
) -> dict[str, TargetRanks]:
  """Fits every baseline and ranks the examples' targets.

  Args:
    interactions: The data.
    split: Whose training part is counted.
    examples: `split.test`, or `split.validation`.
    num_items: N.
    vectors: Item embeddings; without them, those that need them are left out.

  Returns:
    By name, in the order of `BASELINES`.
  """
  interactions.check_items(num_items)
  histories = Histories.create(interactions, examples)
  targets = interactions.items[examples.target_position]
  results = {}
  for name, baseline in BASELINES.items():
    if baseline.needs_vectors and vectors is None:
      continue
    scorer = baseline().fit(
      interactions, split, num_items=num_items, vectors=vectors
    )
    results[name] = target_ranks(
      scorer, histories, targets, description=baseline.label
    )
  return results


def ranks_of(
  scores: Float[np.ndarray, "B N"],
  targets: Int[np.ndarray, "B"],
  tie_rank: Int32[np.ndarray, "N"],
) -> Int[np.ndarray, "B"]:
  """Returns each target's rank from 0; -1 where its score is -inf."""
  score = scores[np.arange(targets.size), targets][:, None]
  rank = np.count_nonzero(scores > score, axis=1)
  before = tie_rank[None] < tie_rank[targets][:, None]
  rank += np.count_nonzero((scores == score) & before, axis=1)
  return np.where(np.isneginf(score[:, 0]), NOT_RETURNED, rank)


def top_items(
  scores: Float[np.ndarray, "B N"],
  tie_rank: Int32[np.ndarray, "N"],
  num_returned: int,
) -> Int[np.ndarray, "B k"]:
  """Returns the best items of each row, best first; -1 where none is left."""
  by_popularity = np.argsort(tie_rank)
  ordered = scores[:, by_popularity]
  places = np.argsort(-ordered, axis=1, kind="stable")[:, :num_returned]
  best = np.take_along_axis(ordered, places, axis=1)
  return np.where(np.isneginf(best), -1, by_popularity[places])


@dataclasses.dataclass(frozen=True, eq=False)
class _Constant:
  """The same scores for everyone."""

  item_scores: np.ndarray  # float64 [N]
  tie_rank: np.ndarray
  reranks: ClassVar[bool] = False

  def score(
    self, histories: Histories, *, remove_history: bool = False
  ) -> Float[np.ndarray, "B N"]:
    scores = np.tile(self.item_scores, (histories.num_users, 1))
    return _remove(scores, histories) if remove_history else scores


@dataclasses.dataclass(frozen=True, eq=False)
class _ItemToItem:
  """History weights times an item-to-item matrix."""

  matrix: scipy.sparse.csr_matrix  # float64 [N, N]
  recency: float
  tie_rank: np.ndarray
  reranks: ClassVar[bool] = False

  def score(
    self, histories: Histories, *, remove_history: bool = False
  ) -> Float[np.ndarray, "B N"]:
    scores = self.sparse_scores(histories).toarray()
    return _remove(scores, histories) if remove_history else scores

  def sparse_scores(self, histories: Histories) -> scipy.sparse.csr_matrix:
    """Returns the scores [B, N] with what no history item leads to left 0."""
    weights = histories.weights(self.recency, self.tie_rank.size)
    return weights @ self.matrix

  def ranks(self, histories: Histories) -> Int32[np.ndarray, "B N"]:
    """Returns every item's rank; sorts only the items that have a score."""
    scores = self.sparse_scores(histories)
    num_rows, num_items = scores.shape
    lengths = np.diff(scores.indptr)
    rows = np.repeat(np.arange(num_rows), lengths)
    place = self.tie_rank[scores.indices]
    order = np.lexsort((place, -scores.data, rows))
    rank = np.arange(rows.size) - np.repeat(scores.indptr[:-1], lengths)
    # Ranks by place in the order of popularity: an item without a score
    # follows all with one, moved up by those that stood before it.
    scored = np.zeros((num_rows, num_items), np.int32)
    scored[rows, place] = 1
    ranks = np.arange(num_items, dtype=np.int32)[None] - np.cumsum(
      scored, axis=1, dtype=np.int32
    )
    ranks += lengths[:, None].astype(np.int32)
    ranks[rows[order], place[order]] = rank
    return ranks[:, self.tie_rank]


@dataclasses.dataclass(frozen=True, eq=False)
class _Cosine:
  """Similarity to the last item of unit vectors."""

  unit: np.ndarray  # float32 [N, D]
  tie_rank: np.ndarray
  reranks: ClassVar[bool] = False

  def score(
    self, histories: Histories, *, remove_history: bool = False
  ) -> Float[np.ndarray, "B N"]:
    last, row = np.unique(histories.last, return_inverse=True)
    scores = self._similarity(last)[row]
    return _remove(scores, histories) if remove_history else scores

  def _similarity(self, last: np.ndarray) -> np.ndarray:
    scores = self.unit[last] @ self.unit.T  # [B, N]
    scores[np.arange(last.size), last] = -np.inf
    return scores

  def ranks(self, histories: Histories) -> Int32[np.ndarray, "B N"]:
    """Returns every item's rank; the last item comes last."""
    last, row = np.unique(histories.last, return_inverse=True)
    scores = self._similarity(last)
    # One integer an item, smallest first: the float's bits so flipped that
    # they sort downwards, then the place in the order of popularity. -0.0
    # would differ from 0.0.
    bits = (scores + np.float32(0)).view(np.uint32)
    negative = bits >> 31 == 1
    descending = np.where(negative, bits, ~(bits | np.uint32(1 << 31)))
    keys = descending.astype(np.uint64) << 32
    keys |= self.tie_rank.astype(np.uint64)[None]
    keys.sort(axis=1)
    place = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ranks = np.empty(place.shape, np.int32)
    ascending = np.arange(place.shape[1], dtype=np.int32)[None]
    np.put_along_axis(ranks, place, ascending, axis=1)
    return ranks[:, self.tie_rank][row]


@dataclasses.dataclass(frozen=True, eq=False)
class _ReciprocalRanks:
  """Sum of 1 / (offset + rank) over several rankings."""

  parts: tuple
  rank_offset: float
  tie_rank: np.ndarray
  reranks: ClassVar[bool] = True

  def score(
    self, histories: Histories, *, remove_history: bool = False
  ) -> Float[np.ndarray, "B N"]:
    num_items = self.tie_rank.size
    gain = 1.0 / (self.rank_offset + np.arange(num_items))
    scores = np.zeros((histories.num_users, num_items))
    for part in self.parts:
      ranks = part.ranks(histories)
      if remove_history:
        ranks = _close_ranks(ranks, histories)
      scores += gain[ranks]
    if remove_history:
      return _remove(scores, histories)
    return scores


def _close_ranks(
  ranks: Int32[np.ndarray, "B N"], histories: Histories
) -> Int32[np.ndarray, "B N"]:
  """Moves every item up by the history items that stood before it."""
  removed = np.zeros(ranks.shape, np.int32)
  removed[histories.rows, ranks[histories.rows, histories.items]] = 1
  before = np.cumsum(removed, axis=1, dtype=np.int32) - removed
  return ranks - np.take_along_axis(before, ranks, axis=1)


def _remove(
  scores: Float[np.ndarray, "B N"], histories: Histories
) -> Float[np.ndarray, "B N"]:
  scores[histories.rows, histories.items] = -np.inf
  return scores


def _trained(interactions: Interactions, split: Split) -> Bool[np.ndarray, "T"]:
  """Which interactions belong to the training part."""
  position = np.arange(interactions.num_interactions)
  return position < np.repeat(split.train_end, interactions.lengths)


def _popularity(
  interactions: Interactions, split: Split, num_items: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns training counts [N] and each item's place among them [N]."""
  items = interactions.items[_trained(interactions, split)]
  counts = np.bincount(items, minlength=num_items).astype(np.float64)
  order = np.argsort(-counts, kind="stable")
  tie_rank = np.empty(num_items, np.int32)
  tie_rank[order] = np.arange(num_items, dtype=np.int32)
  return counts, tie_rank


def _count_pairs(
  rows: np.ndarray,
  columns: np.ndarray,
  num_items: int,
  num_rows: int | None = None,
) -> scipy.sparse.csr_matrix:
  """Returns how often each pair occurs, float64 [num_rows or N, N]."""
  shape = (num_items if num_rows is None else num_rows, num_items)
  ones = np.ones(rows.size)
  return scipy.sparse.coo_matrix((ones, (rows, columns)), shape).tocsr()
