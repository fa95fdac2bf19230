"""Item-level ranks where several items hold one semantic ID. NumPy only.

A decoded ID stands for one of its items, drawn with equal chances (the policy
`random_item`). With the history removed the draw is among the items that are
left, and an ID of which none is left gives up its place. A metric's exact
expectation over the draws is the metric of the ID's rank times the chance
that the target is drawn. Where no ID is shared all chances are 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32

from gr_jax.evaluation import metrics
from gr_jax.sids import groups
from gr_jax.sids.sid_catalog import SidCatalog

# Prefix of metrics on one seeded draw.
SAMPLED = "sampled/"


@dataclasses.dataclass(frozen=True, eq=False)
class ExpectedRanks:
  """Where each target's ID stands, and how likely it gives the target."""

  ranks: Int[np.ndarray, "U"]  # of the ID, from 0; -1: not returned
  chances: Float64[np.ndarray, "U"]  # 0..1


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
  """The items that each semantic ID may stand for.

  Attributes:
    group: The ID of each item, numbered in sorted order [N].
    items: Recommendable items, by ID, then by item index [n].
    starts: Where each ID's items begin in `items`; its end last [G + 1].
  """

  group: Int[np.ndarray, "N"]
  items: Int32[np.ndarray, "n"]
  starts: Int[np.ndarray, "ends"]

  @classmethod
  def create(
    cls,
    catalog: SidCatalog,
    recommendable: Bool[np.ndarray, "N"] | None = None,
  ) -> Buckets:
    """Returns the buckets of a catalog, or of some of its items."""
    found = groups.group_rows(catalog.codes, catalog.codebook_sizes)
    items = found.order
    if recommendable is not None:
      items = items[recommendable[items]]
    counts = np.bincount(found.group[items], minlength=found.num_groups)
    return cls(
      group=found.group,
      items=items.astype(np.int32),
      starts=np.concatenate([[0], np.cumsum(counts)]),
    )

  def num_left(
    self,
    item_index: Int[np.ndarray, "U W"],
    removed: Int[np.ndarray, "U R"] | None = None,
  ) -> Int[np.ndarray, "U W"]:
    """Counts the items that each returned ID may still give its user.

    Args:
      item_index: Any item of each returned ID; -1 names no ID.
      removed: Items that each user shall not be given, -1 filling the rows.

    Returns:
      The counts; 0 where there is no ID.
    """
    ids = self._ids(item_index)
    counts = np.diff(self.starts)
    left = np.where(ids >= 0, counts[ids], 0)
    if removed is None:
      return left
    pairs = np.unique(self._pairs(removed))  # an item counts once
    users, items = np.divmod(pairs, self.group.size)
    held = np.isin(items, self.items)
    keys, gone = np.unique(
      users[held] * counts.size + self.group[items[held]], return_counts=True
    )
    if not keys.size:
      return left
    wanted = np.arange(ids.shape[0])[:, None] * counts.size + ids
    place = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    match = (keys[place] == wanted) & (ids >= 0)
    return left - np.where(match, gone[place], 0)

  def expected_ranks(
    self,
    item_index: Int[np.ndarray, "U W"],
    targets: Int[np.ndarray, "U"],
    removed: Int[np.ndarray, "U R"] | None = None,
  ) -> ExpectedRanks:
    """Returns ranks and chances of the targets; the metrics' weights.

    Args:
      item_index: Any item of each returned ID, best first; -1 names none.
      targets: The items that came next.
      removed: Items that each user shall not be given, -1 filling the rows.
    """
    ids = self._ids(item_index)
    ranks = metrics.target_ranks(ids, self.group[targets])
    left = self.num_left(item_index, removed)
    place = np.maximum(ranks, 0)[:, None]
    left = np.take_along_axis(left, place, axis=1)[:, 0]
    possible = (ranks >= 0) & (left > 0) & np.isin(targets, self.items)
    if removed is not None:
      possible &= ~np.array(
        [
          target in items
          for target, items in zip(targets, removed, strict=True)
        ]
      )
    chances = np.where(possible, 1.0 / np.maximum(left, 1), 0.0)
    return ExpectedRanks(ranks=ranks, chances=chances)

  def sample(
    self,
    item_index: Int[np.ndarray, "U W"],
    generator: np.random.Generator,
    removed: Int[np.ndarray, "U R"] | None = None,
  ) -> Int32[np.ndarray, "U W"]:
    """Draws one item of each returned ID, -1 where it has none to give."""
    ids = self._ids(item_index)
    counts = np.diff(self.starts)
    result = np.full(ids.shape, -1, np.int32)
    users, places = np.nonzero(self.num_left(item_index, removed) > 0)
    banned = np.zeros(0, np.int64)
    if removed is not None:
      banned = self._pairs(removed)
    while users.size:  # again for those that drew what is removed
      bucket = ids[users, places]
      drawn = self.items[
        self.starts[bucket] + generator.integers(counts[bucket])
      ]
      result[users, places] = drawn
      again = np.isin(users * self.group.size + drawn, banned)
      users, places = users[again], places[again]
    return result

  def items_of(self, item: int) -> Int32[np.ndarray, "n"]:
    """Returns all items that share an item's ID, lowest index first."""
    bucket = self.group[item]
    return self.items[self.starts[bucket] : self.starts[bucket + 1]]

  def _pairs(self, removed: Int[np.ndarray, "U R"]) -> Int[np.ndarray, "pairs"]:
    """Numbers the pairs of user and removed item."""
    users = np.arange(removed.shape[0], dtype=np.int64)[:, None]
    return (users * self.group.size + removed)[removed >= 0]

  def _ids(self, item_index: Int[np.ndarray, "U W"]) -> Int[np.ndarray, "U W"]:
    return np.where(item_index >= 0, self.group[item_index], -1)
