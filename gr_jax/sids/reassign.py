"""Collision policies that move items to another last-level code."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

from gr_jax.core import checks, rng
from gr_jax.sids import groups, placement, resolution
from gr_jax.sids.resolution import CollisionContext, Resolution


@dataclasses.dataclass(frozen=True)
class _Overflow:
  """Moves the items beyond an ID's capacity, those of highest index.

  Attributes:
    capacity: Items that one ID may hold; 1 makes IDs unique.
  """

  capacity: int = 1

  def __post_init__(self):
    """Refuses a capacity of nothing."""
    _check_capacity(self.capacity)

  @property
  def transform(self) -> placement.Transform | None:
    """Costs are taken as they are."""
    return None

  def movable(self, found: groups.Groups) -> Bool[np.ndarray, "N"]:
    """No more items than must."""
    return found.rank >= self.capacity

  def resolve(
    self,
    codes: Int32[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
    *,
    key: jax.Array,
    context: CollisionContext | None = None,
  ) -> Resolution:
    """Moves overflowing items; see `CollisionPolicy.resolve`."""
    found = resolution.check_and_group(codes, codebook_sizes)
    placement.check_capacity(codes, codebook_sizes, self.capacity)
    ids = placement.place(
      codes,
      codebook_sizes,
      self.movable(found),
      capacity=self.capacity,
      cost=self.cost(key, int(codebook_sizes[-1]), context),
      transform=self.transform,
    )
    after = groups.group_rows(ids, codebook_sizes)
    return Resolution(
      codes=ids,
      codebook_sizes=tuple(int(k) for k in codebook_sizes),
      shares_ids=after.largest > 1,
      num_shared=found.num_shared,
      largest_bucket=found.largest,
      num_moved=int((ids[:, -1] != codes[:, -1]).sum()),
    )

  def append(
    self,
    ids: Int32[np.ndarray, "N L"],
    id_sizes: Sequence[int],
    codes: Int32[np.ndarray, "M L"],
    *,
    key: jax.Array,
    context: CollisionContext | None = None,
  ) -> Int32[np.ndarray, "M L"]:
    """Moves overflowing new items; see `CollisionPolicy.append`."""
    resolution.check_codes(codes, id_sizes)
    num_old = ids.shape[0]
    together = np.concatenate([ids, codes])
    placement.check_capacity(
      together, id_sizes, self.capacity, num_new=codes.shape[0]
    )
    movable = self.movable(groups.group_rows(together, id_sizes))
    movable[:num_old] = False
    cost = self.cost(key, int(id_sizes[-1]), context)
    placed = placement.place(
      together,
      id_sizes,
      movable,
      capacity=self.capacity,
      cost=lambda rows: cost(rows - num_old),
      transform=self.transform,
    )
    return placed[num_old:]

  def cost(
    self, key: jax.Array, size: int, context: CollisionContext | None
  ) -> placement.Cost:
    """Returns what an item pays for each of `size` last-level codes."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class NextNearest(_Overflow):
  """Policy `knn`: overflowing items take the next-nearest code with room.

  Of the items on one ID the first `capacity` by index stay; each other one,
  in order of index, moves to the nearest last-level code whose ID holds fewer
  than `capacity` items (FORGE, arXiv:2509.20904).
  """

  def cost(
    self, key: jax.Array, size: int, context: CollisionContext | None
  ) -> placement.Cost:
    """Distances to the last level's codes."""
    del key, size
    return _distances(context, "knn")


@dataclasses.dataclass(frozen=True)
class RandomLastLevel(_Overflow):
  """Policy `random_last_level`: as `knn`, with random codes.

  FORGE (arXiv:2509.20904) reports it to recommend better than `knn`.
  """

  def cost(
    self, key: jax.Array, size: int, context: CollisionContext | None
  ) -> placement.Cost:
    """The least of independent draws is a random code."""
    del context
    generator = rng.numpy_generator(key, "random_last_level")

    def draw(rows: Int[np.ndarray, "M"]) -> Float32[np.ndarray, "M K"]:
      return generator.random((rows.size, size), np.float32)

    return draw


@dataclasses.dataclass(frozen=True)
class Sinkhorn(_Overflow):
  """Policy `sinkhorn`: optimal transport of colliding items to codes.

  All items on an over-full ID are re-assigned, together with those on other
  over-full IDs of the same prefix, at least total distance (entropic optimal
  transport); the plan is then made whole, its surest item first. LC-Rec
  (arXiv:2311.09049, eq. 5) asks for equal use of all codes, which suits a
  whole level; the few items of a prefix would so be sent to far codes, and
  here a code's load is bounded by its free places instead.

  Attributes:
    capacity: Items that one ID may hold; 1 makes IDs unique.
    epsilon: Smoothing, as a share of the mean distance within a prefix.
    num_iters: Updates of Sinkhorn's scaling.
  """

  epsilon: float = 0.03
  num_iters: int = 30

  def __post_init__(self):
    """Refuses impossible options."""
    _check_capacity(self.capacity)
    if not 0.015 <= self.epsilon <= 1 or self.num_iters < 1:
      raise checks.InputError(
        "sinkhorn needs epsilon in 0.015..1 (below, float32 has no range for "
        f"it) and num_iters of at least 1; got {self.epsilon} and "
        f"{self.num_iters}."
      )

  @property
  def transform(self) -> placement.Transform | None:
    """As for `placement.place`: Sinkhorn's plan."""
    return functools.partial(
      placement.transport_cost, epsilon=self.epsilon, num_iters=self.num_iters
    )

  def movable(self, found: groups.Groups) -> Bool[np.ndarray, "N"]:
    """Every item of an over-full ID."""
    return found.counts[found.group] > self.capacity

  def cost(
    self, key: jax.Array, size: int, context: CollisionContext | None
  ) -> placement.Cost:
    """Distances to the last level's codes."""
    del key, size
    return _distances(context, "sinkhorn")


def _distances(context: CollisionContext | None, policy: str) -> placement.Cost:
  if context is None or context.last_level_distances is None:
    raise checks.InputError(
      f"{policy} needs the items' distances to the last level's codes "
      "(CollisionContext.last_level_distances); random_last_level needs none."
    )
  return context.last_level_distances


def _check_capacity(capacity: int) -> None:
  if capacity < 1:
    raise checks.InputError(
      f"collisions.capacity must be 1 or more; got {capacity}."
    )
