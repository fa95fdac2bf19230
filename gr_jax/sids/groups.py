"""Groups equal rows of a code matrix; all of it vectorized sorting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32

_KEY_LIMIT = 2**62  # keys stay below, so one more digit never wraps int64


@dataclasses.dataclass(frozen=True)
class Groups:
  """Rows of a code matrix, grouped by equality, groups in sorted order.

  Attributes:
    order: Row indices sorted by code row, ties by row index [N].
    starts: Where each group begins in `order` [G].
    counts: Rows of each group [G].
    group: The group of each row [N].
    rank: Position of each row within its group, by row index [N].
  """

  order: Int[np.ndarray, "N"]
  starts: Int[np.ndarray, "G"]
  counts: Int[np.ndarray, "G"]
  group: Int[np.ndarray, "N"]
  rank: Int[np.ndarray, "N"]

  @property
  def num_groups(self) -> int:
    """Number of distinct rows."""
    return int(self.counts.size)

  @property
  def is_shared(self) -> np.ndarray:
    """True for rows that equal some other row, bool [N]."""
    return self.counts[self.group] > 1

  @property
  def num_shared(self) -> int:
    """Rows that equal some other row: the numerator of `collision_rate`."""
    return int(self.counts[self.counts > 1].sum())

  @property
  def largest(self) -> int:
    """Rows of the largest group, 0 without rows."""
    return int(self.counts.max(initial=0))


def row_keys(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int]
) -> Int[np.ndarray, "N"]:
  """Packs each row into one int64 that sorts and compares like the row.

  The row is a mixed-radix number, -1 (no code) being the smallest digit.
  When the radix product would overflow, the digits so far are replaced by
  their rank, which keeps order and equality.

  Args:
    codes: Codes, -1 where a row has none.
    codebook_sizes: Codes of each level; every code lies below its size.

  Returns:
    int64 keys; only their order and equality mean anything.
  """
  keys, span = np.zeros(codes.shape[0], np.int64), 1
  for level, size in enumerate(codebook_sizes):
    radix = int(size) + 1
    if span * radix > _KEY_LIMIT:
      distinct, keys = np.unique(keys, return_inverse=True)
      span = max(distinct.size, 1)
    keys = keys * radix + (codes[:, level].astype(np.int64) + 1)
    span *= radix
  return keys


def group_keys(keys: Int[np.ndarray, "N"]) -> Groups:
  """Groups equal integers; see `Groups`."""
  order = np.argsort(keys, kind="stable")
  is_first = np.ones(keys.size, bool)
  is_first[1:] = keys[order[1:]] != keys[order[:-1]]
  starts = np.flatnonzero(is_first)
  counts = np.diff(np.append(starts, keys.size))
  sorted_group = np.cumsum(is_first) - 1  # [N], along `order`
  group = np.empty(keys.size, np.int64)
  group[order] = sorted_group
  rank = np.empty(keys.size, np.int64)
  rank[order] = np.arange(keys.size) - starts[sorted_group]
  return Groups(
    order=order, starts=starts, counts=counts, group=group, rank=rank
  )


def group_rows(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int]
) -> Groups:
  """Groups equal code rows; see `Groups`."""
  return group_keys(row_keys(codes, codebook_sizes))
