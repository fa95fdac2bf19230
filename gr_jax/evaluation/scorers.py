"""Fitted baselines: histories in, a score for every item out.

Inside, items are numbered by popularity ("places", 0 the most popular), so
that ties, which popularity decides, go to the lowest column.
"""

import abc
import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int, Int32

from gr_jax.core.checks import InputError
from gr_jax.data.interactions import Interactions
from gr_jax.data.splits import Examples
from gr_jax.evaluation.metrics import NOT_RETURNED


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
    return cls(*_cut(interactions.items, examples.history_start, lengths))

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

  def earlier(self) -> tuple[Int[np.ndarray, "C"], "Histories"]:
    """Returns the histories without their newest item, and whose they are.

    Those of one item are left out.
    """
    rows = np.flatnonzero(self.lengths > 1)
    lengths = self.lengths[rows] - 1
    return rows, Histories(*_cut(self.items, self.offsets[rows], lengths))

  def take(self, rows: Int[np.ndarray, "C"]) -> "Histories":
    """Returns the histories at `rows`, in that order."""
    return Histories(*_cut(self.items, self.offsets[rows], self.lengths[rows]))

  def renumber(self, numbers: Int32[np.ndarray, "N"]) -> "Histories":
    """Returns the histories with every item i called `numbers[i]`."""
    return Histories(numbers[self.items], self.offsets)

  def weights(self, recency: float, num_items: int) -> scipy.sparse.csr_matrix:
    """Returns [B, N] with recency ** (steps before the newest item)."""
    if recency == 0.0:  # 0 ** 0 = 1: the newest item alone
      newest = self.last, np.arange(self.num_users + 1)
      return scipy.sparse.csr_matrix(
        (np.ones(self.num_users), *newest), (self.num_users, num_items)
      )
    age = np.repeat(self.offsets[1:], self.lengths) - 1
    age = age - np.arange(self.items.size)
    return scipy.sparse.csr_matrix(
      (np.power(recency, age), self.items, self.offsets),
      (self.num_users, num_items),
    )


class Ranking(abc.ABC):
  """Scores over items numbered by popularity."""

  @abc.abstractmethod
  def scores(self, histories: Histories) -> Float[np.ndarray, "B N"]:
    """Scores every item, higher is better; -inf for what is left out."""

  def both(
    self, histories: Histories
  ) -> tuple[Float[np.ndarray, "B N"], Float[np.ndarray, "B N"]]:
    """Returns the scores with nothing and with the history removed."""
    scores = self.scores(histories)
    removed = scores.copy()
    removed[histories.rows, histories.items] = -np.inf
    return scores, removed

  def of_items(
    self, histories: Histories, items: Int[np.ndarray, "B W"]
  ) -> Float[np.ndarray, "B W"]:
    """Scores some items alone."""
    return np.take_along_axis(self.scores(histories), items, axis=1)

  def ranks(self, histories: Histories) -> Int32[np.ndarray, "B N"]:
    """Returns every item's rank, ties to the lowest number."""
    order = np.argsort(-self.scores(histories), axis=1, kind="stable")
    ranks = np.empty(order.shape, np.int32)
    ascending = np.arange(order.shape[1], dtype=np.int32)[None]
    np.put_along_axis(ranks, order, ascending, axis=1)
    return ranks


@dataclasses.dataclass(frozen=True, eq=False)
class Constant(Ranking):
  """The same scores for everyone."""

  item_scores: np.ndarray  # float64 [N]

  def scores(self, histories: Histories) -> Float[np.ndarray, "B N"]:
    """Repeats the scores."""
    return np.tile(self.item_scores, (histories.num_users, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class ItemToItem(Ranking):
  """History weights times an item-to-item matrix of nonnegative values."""

  matrix: scipy.sparse.csr_matrix  # float64 [N, N]
  recency: float

  def scores(self, histories: Histories) -> Float[np.ndarray, "B N"]:
    """Multiplies; what no history item leads to scores 0."""
    return self._sparse_scores(histories).toarray()

  def of_items(
    self, histories: Histories, items: Int[np.ndarray, "B W"]
  ) -> Float[np.ndarray, "B W"]:
    """As the base class, and holds one row of all items at a time."""
    scores = self._sparse_scores(histories)
    found = np.empty(items.shape)
    of_all = np.zeros(scores.shape[1])
    for row, (scored, values) in enumerate(_rows(scores)):
      of_all[scored] = values
      found[row] = of_all[items[row]]
      of_all[scored] = 0.0
    return found

  def _sparse_scores(self, histories: Histories) -> scipy.sparse.csr_matrix:
    weights = histories.weights(self.recency, self.matrix.shape[0])
    return weights @ self.matrix

  def ranks(self, histories: Histories) -> Int32[np.ndarray, "B N"]:
    """As the base class, but sorts only the items that have a score."""
    scores = self._sparse_scores(histories)
    scores.eliminate_zeros()
    scores.sort_indices()
    num_rows, num_items = scores.shape
    lengths = np.diff(scores.indptr)
    has_score = np.zeros((num_rows, num_items), np.int32)
    has_score[np.repeat(np.arange(num_rows), lengths), scores.indices] = 1
    # An item without a score follows all that have one; among its like it
    # keeps its place, less those with a score that stood before it.
    ranks = np.arange(num_items, dtype=np.int32)[None] + lengths[:, None]
    ranks = ranks.astype(np.int32) - np.cumsum(
      has_score, axis=1, dtype=np.int32
    )
    for row, (scored, values) in enumerate(_rows(scores)):
      order = np.argsort(-values, kind="stable")
      ranks[row, scored[order]] = np.arange(values.size)
    return ranks


@dataclasses.dataclass(frozen=True, eq=False)
class Cosine(Ranking):
  """Similarity of unit vectors to that of the last item, itself left out."""

  unit: np.ndarray  # float32 [N, D]

  def scores(self, histories: Histories) -> Float[np.ndarray, "B N"]:
    """Multiplies once for all histories that end alike."""
    last, row = np.unique(histories.last, return_inverse=True)
    return self._similarity(last)[row]

  def of_items(
    self, histories: Histories, items: Int[np.ndarray, "B W"]
  ) -> Float[np.ndarray, "B W"]:
    """As the base class, and holds a vector an item asked for."""
    last = histories.last
    scores = np.einsum("bd,bwd->bw", self.unit[last], self.unit[items])
    return np.where(items == last[:, None], np.float32(-np.inf), scores)

  def _similarity(self, last: np.ndarray) -> np.ndarray:
    scores = self.unit[last] @ self.unit.T
    scores[np.arange(last.size), last] = -np.inf
    return scores

  def ranks(self, histories: Histories) -> Int32[np.ndarray, "B N"]:
    """As the base class, but sorts integers, several times faster."""
    last, row = np.unique(histories.last, return_inverse=True)
    scores = self._similarity(last)
    # One integer an item, smallest first: the float's bits, so flipped that
    # they sort downwards, then the item's number. -0.0 is made 0.0.
    bits = (scores + np.float32(0)).view(np.uint32)
    descending = np.where(bits >> 31 == 1, bits, ~(bits | np.uint32(1 << 31)))
    keys = descending.astype(np.uint64) << 32
    keys |= np.arange(keys.shape[1], dtype=np.uint64)[None]
    keys.sort(axis=1)
    order = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    ranks = np.empty(order.shape, np.int32)
    ascending = np.arange(order.shape[1], dtype=np.int32)[None]
    np.put_along_axis(ranks, order, ascending, axis=1)
    return ranks[row]


@dataclasses.dataclass(frozen=True, eq=False)
class ReciprocalRanks(Ranking):
  """Sum of 1 / (offset + rank) over several rankings."""

  parts: tuple[Ranking, ...]
  rank_offset: float

  def scores(self, histories: Histories) -> Float[np.ndarray, "B N"]:
    """Adds up the parts."""
    return self.both(histories)[0]

  def both(
    self, histories: Histories
  ) -> tuple[Float[np.ndarray, "B N"], Float[np.ndarray, "B N"]]:
    """As the base class; each part is ranked anew without the history."""
    scores, removed = 0.0, 0.0
    for part in self.parts:
      ranks = part.ranks(histories)
      scores = scores + 1.0 / (self.rank_offset + ranks)
      ranks = close_ranks(ranks, histories)
      removed = removed + 1.0 / (self.rank_offset + ranks)
    removed[histories.rows, histories.items] = -np.inf
    return scores, removed


def close_ranks(
  ranks: Int32[np.ndarray, "B N"], histories: Histories
) -> Int32[np.ndarray, "B N"]:
  """Moves every item up by the history items that stood before it."""
  gone = np.zeros(ranks.shape, np.int32)
  gone[histories.rows, ranks[histories.rows, histories.items]] = 1
  before = np.cumsum(gone, axis=1, dtype=np.int32)
  row = np.arange(ranks.shape[0])[:, None]
  # The items gone count themselves too; nobody reads their rank.
  return ranks - before[row, ranks]


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """A fitted baseline.

  Attributes:
    by_popularity: int32 [N], item indices, most often chosen first.
    ranking: What scores them, in that numbering.
  """

  by_popularity: np.ndarray
  ranking: Ranking

  @property
  def num_items(self) -> int:
    """N."""
    return self.by_popularity.size

  @property
  def place(self) -> Int32[np.ndarray, "N"]:
    """Each item's place in the order of popularity."""
    return invert(self.by_popularity)

  def score(
    self, histories: Histories, *, remove_history: bool = False
  ) -> Float[np.ndarray, "B N"]:
    """Scores every item for every history, higher is better.

    -inf where an item is not to be returned at all: one's own history when
    `remove_history`, and what the baseline itself leaves out. Holds one row
    a history: hand in chunks.
    """
    place = self.place
    scores = self.ranking.both(histories.renumber(place))[remove_history]
    return np.take(scores, place, axis=1)

  def score_items(
    self, histories: Histories, items: Int[np.ndarray, "B W"]
  ) -> Float[np.ndarray, "B W"]:
    """Scores some items for every history, as `score` does all."""
    place = self.place
    return self.ranking.of_items(histories.renumber(place), place[items])

  def top_items(
    self,
    histories: Histories,
    num_returned: int,
    *,
    remove_history: bool = False,
  ) -> Int32[np.ndarray, "B k"]:
    """Returns the best items of each history; -1 where none is left."""
    histories = histories.renumber(self.place)
    scores = self.ranking.both(histories)[remove_history]
    return self.best_items(scores, num_returned)

  def best_items(
    self, scores: Float[np.ndarray, "B N"], num_returned: int
  ) -> Int32[np.ndarray, "B k"]:
    """Returns the items of the best scores, in the ranking's own numbering.

    Ties to the lowest number; -1 where the score is -inf.
    """
    count = min(num_returned, scores.shape[1])
    last = -np.partition(-scores, count - 1, axis=1)[:, count - 1 : count]
    above, equal = scores > last, scores == last
    room = count - np.count_nonzero(above, axis=1, keepdims=True)
    kept = above | (equal & (np.cumsum(equal, axis=1) <= room))
    place = np.nonzero(kept)[1].reshape(-1, count)
    best = np.take_along_axis(scores, place, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    items = self.by_popularity[np.take_along_axis(place, order, axis=1)]
    best = np.take_along_axis(best, order, axis=1)
    return np.where(np.isneginf(best), np.int32(NOT_RETURNED), items)


def ranks_of(
  scores: Float[np.ndarray, "B N"], targets: Int[np.ndarray, "B"]
) -> Int[np.ndarray, "B"]:
  """Returns each target's rank from 0, ties to the lowest column.

  -1 where its score is -inf: it is not returned.
  """
  score = scores[np.arange(targets.size), targets][:, None]
  before = np.arange(scores.shape[1])[None] < targets[:, None]
  rank = np.count_nonzero(scores > score, axis=1)
  rank += np.count_nonzero((scores == score) & before, axis=1)
  return np.where(np.isneginf(score[:, 0]), NOT_RETURNED, rank)


def invert(order: Int32[np.ndarray, "N"]) -> Int32[np.ndarray, "N"]:
  """Returns the inverse of a permutation."""
  inverse = np.empty_like(order)
  inverse[order] = np.arange(order.size, dtype=order.dtype)
  return inverse


def trained(
  interactions: Interactions, train_end: Int[np.ndarray, "U"]
) -> Bool[np.ndarray, "T"]:
  """Tells which interactions belong to the training part."""
  position = np.arange(interactions.num_interactions)
  return position < np.repeat(train_end, interactions.lengths)


def _rows(
  matrix: scipy.sparse.csr_matrix,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields the columns and the values that each row stores."""
  for start, end in itertools.pairwise(matrix.indptr):
    yield matrix.indices[start:end], matrix.data[start:end]


def _cut(
  items: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Joins pieces of a flat array; returns them and their offsets."""
  offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
  shift = np.repeat(starts - offsets[:-1], lengths)
  return items[np.arange(offsets[-1]) + shift], offsets
