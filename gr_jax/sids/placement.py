"""Gives items free last-level codes under their own prefix; vectorized.

All items that share the codes before the last level compete for its K codes,
each of which may hold `capacity` items. Prefixes do not compete with each
other, so one round serves one item of every prefix at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from gr_jax.core import checks
from gr_jax.sids import groups

_BLOCK_ELEMENTS = 1 << 22  # of one [rows, K] block of costs: 16 MB

# Rows [M] -> cost of each last-level code, lower is better [M, K].
Cost = Callable[[np.ndarray], np.ndarray]
# Costs [M, K], first row of each prefix [P], free places [P, K] -> costs.
Transform = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def overflowing(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int], capacity: int
) -> Bool[np.ndarray, "N"]:
  """Marks the items beyond the first `capacity` of their ID, by item index.

  No policy can move fewer: of n > capacity items on one ID, n - capacity go.
  """
  return groups.group_rows(codes, codebook_sizes).rank >= capacity


def check_capacity(
  codes: Int32[np.ndarray, "N L"],
  codebook_sizes: Sequence[int],
  capacity: int,
  *,
  num_new: int | None = None,
) -> None:
  """Refuses items that no choice of last-level codes can separate.

  Args:
    codes: All items' codes.
    codebook_sizes: Codes of each level.
    capacity: Items that one ID may hold.
    num_new: How many of the last rows are new; only worded differently.

  Raises:
    InputError: A prefix with more items than places, or a row without a code
      at the last level.
  """
  if (codes[:, -1] < 0).any():
    row = int(np.argmax(codes[:, -1] < 0))
    raise checks.InputError(
      f"Item index {row} has no code at the last level to be moved from; "
      "use extra_level for IDs that end early."
    )
  counts = groups.group_rows(codes[:, :-1], codebook_sizes[:-1]).counts
  size = int(codebook_sizes[-1])
  excess = np.maximum(counts - size * capacity, 0)
  if excess.any():
    what = f"{codes.shape[0]} items" if num_new is None else f"{num_new} new"
    raise checks.InputError(
      f"{excess.sum()} of {what} under {(excess > 0).sum()} prefixes do not "
      f"fit: up to {counts.max()} items share all codes but the last, whose "
      f"{size} codes hold capacity={capacity} each. Set capacity to at least "
      f"{-(-int(counts.max()) // size)}, or fit larger codebooks."
    )


def place(
  codes: Int32[np.ndarray, "N L"],
  codebook_sizes: Sequence[int],
  movable: Bool[np.ndarray, "N"],
  *,
  capacity: int,
  cost: Cost,
  transform: Transform | None = None,
) -> Int32[np.ndarray, "N L"]:
  """Gives each movable item the cheapest last-level code that has room.

  The items of a prefix choose one after the other, in order of item index,
  or, with `transform`, of their best transformed cost. Items that are not
  movable hold their places from the start. Call `check_capacity` before.

  Args:
    codes: All items' codes.
    codebook_sizes: Codes of each level.
    movable: Items to place; the rest keep their codes.
    capacity: Items that one ID may hold.
    cost: Costs of rows; ties go to the lowest code.
    transform: Turns the costs of whole prefixes into others (Sinkhorn).

  Returns:
    The codes, changed at most in the last level of movable items.
  """
  result = codes.copy()
  rows = np.flatnonzero(movable)
  if not rows.size:
    return result
  size = int(codebook_sizes[-1])
  prefix = groups.group_rows(codes[:, :-1], codebook_sizes[:-1]).group  # [N]
  numbers, local, demand = np.unique(
    prefix[rows], return_inverse=True, return_counts=True
  )
  # Prefixes of like demand share a block, so that no round serves only few.
  by_demand = np.argsort(-demand, kind="stable")
  turn_of = np.empty_like(by_demand)
  turn_of[by_demand] = np.arange(by_demand.size)
  local = turn_of[local.reshape(-1)]  # [M], prefixes numbered by demand
  order = np.argsort(local, kind="stable")
  rows, local, demand = rows[order], local[order], demand[by_demand]
  starts = np.concatenate([[0], np.cumsum(demand)])  # [P + 1]

  place_of = np.full(int(prefix.max()) + 1, -1)  # prefix -> its number here
  place_of[numbers] = turn_of
  settled = np.flatnonzero(~movable & (place_of[prefix] >= 0))
  settled = settled[np.argsort(place_of[prefix[settled]], kind="stable")]
  settled_place = place_of[prefix[settled]]

  begin = 0
  while begin < demand.size:
    # As many whole prefixes as fit a block, at least one.
    room = starts[begin] + _BLOCK_ELEMENTS // size
    end = max(begin + 1, int(np.searchsorted(starts, room, "right")) - 1)
    end = min(end, begin + max(1, _BLOCK_ELEMENTS // size))
    held = slice(*np.searchsorted(settled_place, [begin, end]))
    taken = np.bincount(
      (settled_place[held] - begin) * size + codes[settled[held], -1],
      minlength=(end - begin) * size,
    ).reshape(-1, size)  # [P, K]
    block = slice(starts[begin], starts[end])
    result[rows[block], -1] = _choose(
      cost(rows[block]),
      starts[begin : end + 1] - starts[begin],
      capacity - taken,
      transform,
    )
    begin = end
  return result


def _choose(
  cost: Float32[np.ndarray, "M K"],
  starts: Int[np.ndarray, "ends"],
  free: Int[np.ndarray, "P K"],
  transform: Transform | None,
) -> Int[np.ndarray, "M"]:
  """Rounds: the next item of every prefix takes its cheapest free code."""
  demand = np.diff(starts)
  prefix = np.repeat(np.arange(demand.size), demand)  # [M]
  by_turn = np.arange(prefix.size)
  if transform is not None:
    cost = transform(cost, starts[:-1], free)
    by_turn = np.lexsort((by_turn, cost.min(axis=1), prefix))
  turn = np.arange(prefix.size) - starts[prefix]  # of the items in `by_turn`
  rounds = np.argsort(turn, kind="stable")
  ends = np.cumsum(np.bincount(turn))
  chosen = np.empty(prefix.size, np.int64)
  for start, end in zip([0, *ends[:-1]], ends, strict=True):
    items = by_turn[rounds[start:end]]
    whose = prefix[items]  # each prefix once
    open_cost = np.where(free[whose] > 0, cost[items], np.inf)
    chosen[items] = open_cost.argmin(axis=1)
    free[whose, chosen[items]] -= 1
  return chosen


def transport_cost(
  cost: Float32[np.ndarray, "M K"],
  starts: Int[np.ndarray, "P"],
  free: Int[np.ndarray, "P K"],
  *,
  epsilon: float,
  num_iters: int,
) -> Float32[np.ndarray, "M K"]:
  """Returns minus each prefix's optimal transport plan of items to codes.

  Sinkhorn's scaling of exp(-cost / eps) (Cuturi 2013, arXiv:1306.0895),
  where every item sends mass 1 and a code takes at most its free places:
  the update of a column divides only when it is over-full.

  Args:
    cost: Rows of one prefix stand together.
    starts: First row of each prefix.
    free: Free places of each prefix's codes.
    epsilon: Smoothing, as a share of the prefix's mean cost of free codes.
    num_iters: Updates of rows and columns.

  Returns:
    -plan where it has mass; else how much farther than the nearest free code
    a code is; infinite for codes that no item needs.
  """
  demand = np.diff(np.append(starts, cost.shape[0]))
  prefix = np.repeat(np.arange(starts.size), demand)  # [M]
  size = cost.shape[1]
  cost = np.where(free[prefix] > 0, cost, np.float32(np.inf))
  # Of n competing items none needs a code beyond its n nearest free ones.
  width = min(size, int(demand.max()))
  near = np.argpartition(cost, width - 1, axis=1)[:, :width]  # [M, near]
  gap = np.take_along_axis(cost, near, axis=1)
  gap = gap - gap.min(axis=1, keepdims=True)
  slots, slot = np.unique(prefix[:, None] * size + near, return_inverse=True)
  slot = slot.reshape(near.shape)
  places = free.reshape(-1)[slots]
  finite = np.isfinite(gap)
  total = np.add.reduceat(np.where(finite, gap, 0).sum(axis=1), starts)  # [P]
  scale = epsilon * total / np.add.reduceat(finite.sum(axis=1), starts)
  scale = np.maximum(scale, np.finfo(np.float32).tiny)[prefix, None]
  kernel = np.exp(-gap / scale)
  columns = np.ones(slots.size)
  for _ in range(num_iters):
    rows = 1 / np.einsum("mk,mk->m", kernel, columns[slot])
    sent = kernel * rows[:, None]
    load = np.bincount(slot.reshape(-1), sent.reshape(-1))
    columns = np.minimum(1, places / np.maximum(load, 1e-30))
  plan = kernel * columns[slot]
  plan /= plan.sum(axis=1, keepdims=True)
  # Where the plan has nothing to say, the nearest code comes first.
  result = np.full(cost.shape, np.inf, np.float32)
  rest = np.where(plan > 1e-9, -plan, gap)
  np.put_along_axis(result, near, rest.astype(np.float32), axis=1)
  return result
