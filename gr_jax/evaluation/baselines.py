"""Counters that need no training, on the split a model is judged on.

A model that does not beat these has not earned its training time. All of them
learn from the training part of the split alone (no validation or test item)
and score the full history of a held-out example. Equal scores, and items a
scorer knows nothing about, stand in order of popularity, then of item index.

Every baseline is a frozen dataclass whose `fit` returns a `Scorer`.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Float, Int

from gr_jax.core import checks, progress
from gr_jax.core.checks import InputError
from gr_jax.data.interactions import Interactions
from gr_jax.data.splits import Examples, Split
from gr_jax.embeddings.normalization import unit_rows
from gr_jax.evaluation import scorers
from gr_jax.evaluation.scorers import Histories, Scorer

# Rows of examples, and all items' scores in each of the two forms.
Visitor = Callable[[np.ndarray, Sequence[np.ndarray]], None]

_CHUNK_ELEMENTS = 1 << 20  # scores a thread holds at once: 8 MiB of float64


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
    part = _TrainingPart.create(interactions, split, num_items)
    return Scorer(part.by_popularity, scorers.Constant(part.counts))


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
    part = _TrainingPart.create(interactions, split, num_items)
    follows = part.users[:-1] == part.users[1:]
    pairs = part.places[:-1][follows], part.places[1:][follows]
    counts = _count(*pairs, (num_items, num_items))
    return Scorer(part.by_popularity, scorers.ItemToItem(counts, 0.0))


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
    part = _TrainingPart.create(interactions, split, num_items)
    shape = (interactions.num_users, num_items)
    chosen = _count(part.users, part.places, shape)
    chosen.data[:] = 1.0  # a user counts once however often they came back
    num_users = np.asarray(chosen.sum(axis=0)).reshape(-1)  # [N]
    together = (chosen.T @ chosen).tocsr()
    together.setdiag(0.0)
    together.eliminate_zeros()
    scale = scipy.sparse.diags(np.maximum(num_users, 1.0) ** -0.5)
    cosine = scipy.sparse.csr_matrix(scale @ together @ scale)
    return Scorer(part.by_popularity, scorers.ItemToItem(cosine, self.recency))


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
    unit = unit_rows(vectors)
    part = _TrainingPart.create(interactions, split, num_items)
    by_popularity = part.by_popularity
    return Scorer(by_popularity, scorers.Cosine(unit[by_popularity]))


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
    rankings = tuple(part.ranking for part in parts)
    return Scorer(
      parts[0].by_popularity,
      scorers.ReciprocalRanks(rankings, self.rank_offset),
    )


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
  candidates: Bool[np.ndarray, "N"] | None = None,
  description: str = "ranking",
) -> TargetRanks:
  """Ranks every target, chunks of examples in threads.

  Args:
    scorer: A fitted baseline.
    histories: Of the examples.
    targets: The items that came next.
    candidates: Items that may be returned; None for all.
    description: What the progress bar says.
  """
  if candidates is not None:
    left_out = np.flatnonzero(~candidates[scorer.by_popularity])
  places = scorer.place[targets]
  both = np.empty((2, targets.size), np.int64)

  def rank(rows: np.ndarray, forms: Sequence[np.ndarray]) -> None:
    for form, scores in enumerate(forms):
      kept = scores
      if candidates is not None:
        kept = scores.copy()
        kept[:, left_out] = -np.inf
      both[form, rows] = scorers.ranks_of(kept, places[rows])

  visit(scorer, histories, [rank], description=description)
  return TargetRanks(nothing_removed=both[0], history_removed=both[1])


class FusedRanks:
  """Ranks every target by a model's list fused with the counters' fusion.

  An item at place r of the list gains 1 / (rank_offset + r) on what `Fusion`
  gives it, as if the model were its fourth ranking; items that are not listed
  gain nothing. No weight is tuned. A visitor of `visit`.
  """

  def __init__(
    self,
    scorer: Scorer,
    targets: Int[np.ndarray, "M"],
    lists: Sequence[tuple[Int[np.ndarray, "M W"], Int[np.ndarray, "M W"]]],
    *,
    rank_offset: float = Fusion.rank_offset,
  ):
    """Makes room for the ranks.

    Args:
      scorer: A fitted `Fusion`.
      targets: The items that came next.
      lists: For each model, its items with nothing and with the history
        removed, best first, -1 for none. Items the scorer lacks are passed
        over.
      rank_offset: As `Fusion`'s.
    """
    self._place = scorer.place
    self._places = self._place[targets]
    self._lists = lists
    self._rank_offset = rank_offset
    self._ranks = np.empty((len(lists), 2, targets.size), np.int64)

  def __call__(self, rows: np.ndarray, forms: Sequence[np.ndarray]) -> None:
    """Ranks the targets of some examples."""
    for form, scores in enumerate(forms):
      for model, each in enumerate(self._lists):
        listed = each[form][rows]
        row, column = np.nonzero((listed >= 0) & (listed < self._place.size))
        fused = scores.copy()
        gain = 1.0 / (self._rank_offset + column)
        fused[row, self._place[listed[row, column]]] += gain
        ranks = scorers.ranks_of(fused, self._places[rows])
        self._ranks[model, form, rows] = ranks

  def results(self) -> list[TargetRanks]:
    """Returns the ranks of each model."""
    return [TargetRanks(*both) for both in self._ranks]


class TopLists:
  """Every example's best items, -1 where none is left; for `visit`.

  Attributes:
    nothing_removed: int32 [M, k].
    history_removed: int32 [M, k].
  """

  def __init__(self, scorer: Scorer, num_examples: int, num_returned: int):
    """Makes room for lists of at most `num_returned` items."""
    self._scorer = scorer
    shape = (num_examples, min(num_returned, scorer.num_items))
    self.nothing_removed = np.empty(shape, np.int32)
    self.history_removed = np.empty(shape, np.int32)

  def __call__(self, rows: np.ndarray, forms: Sequence[np.ndarray]) -> None:
    """Lists the items of some examples."""
    both = self.nothing_removed, self.history_removed
    for lists, scores in zip(both, forms, strict=True):
      lists[rows] = self._scorer.best_items(scores, lists.shape[1])


def visit(
  scorer: Scorer,
  histories: Histories,
  visitors: Sequence[Visitor],
  *,
  description: str = "ranking",
) -> None:
  """Scores all items for every example once, chunks of examples in threads.

  Args:
    scorer: A fitted baseline.
    histories: Of the examples.
    visitors: Called with the rows of some examples and their scores with
      nothing and with the history removed, in the scorer's own numbering of
      items; none may change them.
    description: What the progress bar says.
  """
  histories = histories.renumber(scorer.place)
  # Neighbors in this order share last items, hence rows of the text scorer.
  order = np.argsort(histories.last, kind="stable")
  size = max(1, _CHUNK_ELEMENTS // scorer.num_items)

  def work(rows: np.ndarray) -> int:
    forms = scorer.ranking.both(histories.take(rows))
    for visitor in visitors:
      visitor(rows, forms)
    return rows.size

  chunks = [order[i : i + size] for i in range(0, order.size, size)]
  with (
    progress.bar(description, total=order.size, unit="user") as advance,
    concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
  ):
    for count in pool.map(work, chunks):
      advance(count)


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


@dataclasses.dataclass(frozen=True, eq=False)
class _TrainingPart:
  """The interactions that may be counted, items numbered by popularity."""

  users: np.ndarray  # int64 [t], ascending, each user's in their order
  places: np.ndarray  # int32 [t]
  by_popularity: np.ndarray  # int32 [N]
  counts: np.ndarray  # float64 [N], by place

  @classmethod
  def create(
    cls, interactions: Interactions, split: Split, num_items: int
  ) -> "_TrainingPart":
    keep = scorers.trained(interactions, split.train_end)
    items = interactions.items[keep]
    counts = np.bincount(items, minlength=num_items).astype(np.float64)
    by_popularity = np.argsort(-counts, kind="stable").astype(np.int32)
    return cls(
      users=interactions.user_index[keep],
      places=scorers.invert(by_popularity)[items],
      by_popularity=by_popularity,
      counts=counts[by_popularity],
    )


def _count(
  rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_matrix:
  """Returns how often each pair occurs, float64."""
  ones = np.ones(rows.size)
  return scipy.sparse.coo_matrix((ones, (rows, columns)), shape).tocsr()
