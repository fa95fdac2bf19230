"""Collision policies: from codes that items may share to semantic IDs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int32

from gr_jax.core import checks
from gr_jax.sids import groups, reassign, resolution
from gr_jax.sids.resolution import (
  CollisionContext,
  CollisionPolicy,
  Resolution,
  check_and_group,
)

__all__ = [
  "POLICIES",
  "CollisionContext",
  "CollisionPolicy",
  "ExtraLevel",
  "KeepShared",
  "RandomItem",
  "Resolution",
  "SparseId",
  "check_and_group",
]


@dataclasses.dataclass(frozen=True)
class KeepShared:
  """Policy `none`: keeps collisions and reports them."""

  def resolve(
    self,
    codes: Int32[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
    *,
    key: jax.Array | None = None,
    context: CollisionContext | None = None,
  ) -> Resolution:
    """Returns the codes as they are; see `CollisionPolicy.resolve`."""
    del key, context
    found = check_and_group(codes, codebook_sizes)
    return Resolution(
      codes=codes,
      codebook_sizes=tuple(int(k) for k in codebook_sizes),
      shares_ids=found.largest > 1,
      num_shared=found.num_shared,
      largest_bucket=found.largest,
    )

  def append(
    self,
    ids: Int32[np.ndarray, "N L"],
    id_sizes: Sequence[int],
    codes: Int32[np.ndarray, "M L"],
    *,
    key: jax.Array | None = None,
    context: CollisionContext | None = None,
  ) -> Int32[np.ndarray, "M L"]:
    """Returns the codes as they are; see `CollisionPolicy.append`."""
    del ids, key, context
    resolution.check_codes(codes, id_sizes)
    return codes


@dataclasses.dataclass(frozen=True)
class RandomItem(KeepShared):
  """Policy `random_item`: IDs stay shared, an ID stands for one of its items.

  Which one is drawn at random when the ID is decoded (GRID, arXiv:2507.22224);
  metrics are expectations over that draw. The codes are those of `none`,
  and catalogs of both are evaluated alike.
  """


@dataclasses.dataclass(frozen=True)
class ExtraLevel:
  """Policy `extra_level`: numbers the items of an ID on one more level.

  The item with the lowest index gets 0, the next 1, and so on (TIGER,
  arXiv:2305.05065, section 3.1). The level's size is read from the data:
  the largest group, plus room for items that are appended later.

  Attributes:
    max_per_sid: Most items that may share the codes of the tokenizer.
    spare_codes: Codes of the new level kept free for appended items, as far
      as `max_per_sid` allows.
  """

  max_per_sid: int = 256
  spare_codes: int = 16

  def __post_init__(self):
    """Refuses impossible options."""
    if self.max_per_sid < 1 or self.spare_codes < 0:
      raise checks.InputError(
        "extra_level needs max_per_sid of at least 1 and spare_codes of at "
        f"least 0; got {self.max_per_sid} and {self.spare_codes}."
      )

  def resolve(
    self,
    codes: Int32[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
    *,
    key: jax.Array | None = None,
    context: CollisionContext | None = None,
  ) -> Resolution:
    """Appends each item's number; see `CollisionPolicy.resolve`.

    Raises:
      InputError: More than `max_per_sid` items share their codes.
    """
    del key, context
    found = check_and_group(codes, codebook_sizes)
    if found.largest > self.max_per_sid:
      num_over = int(np.maximum(found.counts - self.max_per_sid, 0).sum())
      num_groups = int((found.counts > self.max_per_sid).sum())
      raise checks.InputError(
        f"{num_over} of {codes.shape[0]} items in {num_groups} semantic IDs "
        f"do not fit: up to {found.largest} items share one ID and "
        f"max_per_sid={self.max_per_sid}. Raise max_per_sid to at least "
        f"{found.largest}, or fit more or larger codebooks."
      )
    size = min(found.largest + self.spare_codes, self.max_per_sid)
    extra = found.rank.astype(np.int32)[:, None]  # [N, 1]
    return Resolution(
      codes=np.concatenate([codes, extra], axis=1),
      codebook_sizes=(*(int(k) for k in codebook_sizes), size),
      shares_ids=False,
      num_shared=found.num_shared,
      largest_bucket=found.largest,
    )

  def append(
    self,
    ids: Int32[np.ndarray, "N L2"],
    id_sizes: Sequence[int],
    codes: Int32[np.ndarray, "M L"],
    *,
    key: jax.Array | None = None,
    context: CollisionContext | None = None,
  ) -> Int32[np.ndarray, "M L2"]:
    """Takes the lowest free numbers; see `CollisionPolicy.append`.

    Raises:
      InputError: The extra level, whose size the model knows, is too small.
    """
    del key, context
    resolution.check_codes(codes, id_sizes[:-1])
    num_old, size = ids.shape[0], int(id_sizes[-1])
    together = np.concatenate([ids[:, :-1], codes])
    found = groups.group_rows(together, id_sizes[:-1])
    old, new = found.group[:num_old], found.group[num_old:]
    touched, turn = np.unique(new, return_inverse=True)  # IDs, and whose
    arrivals = groups.group_keys(turn.reshape(-1))  # new items by their ID
    is_taken = np.zeros((touched.size, size), bool)
    place = np.searchsorted(touched, old)
    place[place == touched.size] = 0
    meets = touched[place] == old
    is_taken[place[meets], ids[meets, -1]] = True
    num_free = size - is_taken.sum(axis=1)
    num_over = int(np.maximum(arrivals.counts - num_free, 0).sum())
    if num_over:
      most = int((arrivals.counts - num_free).max())
      raise checks.InputError(
        f"{num_over} of {codes.shape[0]} new items do not fit: up to "
        f"{size + most} items would share their codes, and the extra level "
        f"has {size}. Tokenize and train again, with spare_codes of at least "
        f"{most} more."
      )
    free_first = np.argsort(is_taken, axis=1, kind="stable")  # [IDs, size]
    extra = free_first[turn.reshape(-1), arrivals.rank].astype(np.int32)
    return np.concatenate([codes, extra[:, None]], axis=1)


@dataclasses.dataclass(frozen=True)
class SparseId:
  """Policy `sparse_id`: appends the item's own number as last tokens.

  Every item gets a token, or a few, that no other item has, after the codes
  that it may share (CAR's sparse ID): the item's index, written in `num_tokens`
  digits.

  Attributes:
    num_tokens: Tokens that the number takes.
    spare_items: Numbers kept free for appended items.
  """

  num_tokens: int = 1
  spare_items: int = 1024

  def __post_init__(self):
    """Refuses impossible options."""
    if self.num_tokens < 1 or self.spare_items < 0:
      raise checks.InputError(
        "sparse_id needs num_tokens of at least 1 and spare_items of at "
        f"least 0; got {self.num_tokens} and {self.spare_items}."
      )

  def resolve(
    self,
    codes: Int32[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
    *,
    key: jax.Array | None = None,
    context: CollisionContext | None = None,
  ) -> Resolution:
    """Appends every item's number; see `CollisionPolicy.resolve`."""
    del key, context
    found = check_and_group(codes, codebook_sizes)
    num_items = codes.shape[0]
    sizes = self._sizes(num_items + self.spare_items)
    sparse = _digits(np.arange(num_items), sizes)
    return Resolution(
      codes=np.concatenate([codes, sparse], axis=1),
      codebook_sizes=(*(int(k) for k in codebook_sizes), *sizes),
      shares_ids=False,
      num_shared=found.num_shared,
      largest_bucket=found.largest,
    )

  def append(
    self,
    ids: Int32[np.ndarray, "N L2"],
    id_sizes: Sequence[int],
    codes: Int32[np.ndarray, "M L"],
    *,
    key: jax.Array | None = None,
    context: CollisionContext | None = None,
  ) -> Int32[np.ndarray, "M L2"]:
    """Numbers the new items on; see `CollisionPolicy.append`.

    Raises:
      InputError: All numbers are given away.
    """
    del key, context
    num_levels = codes.shape[1]
    resolution.check_codes(codes, id_sizes[:num_levels])
    sizes = tuple(int(size) for size in id_sizes[num_levels:])
    last = np.ravel_multi_index(ids[:, num_levels:].T, sizes)
    # Only upwards: a number that an item gave up may still be remembered.
    first = int(last.max(initial=-1)) + 1
    room = int(np.prod(sizes, dtype=np.int64)) - first
    if codes.shape[0] > room:
      raise checks.InputError(
        f"{codes.shape[0] - room} of {codes.shape[0]} new items do not fit: "
        f"the numbers of sparse_id end at {room + first}. Tokenize and "
        "train again with spare_items of at least "
        f"{codes.shape[0] - room} more."
      )
    numbers = first + np.arange(codes.shape[0])
    return np.concatenate([codes, _digits(numbers, sizes)], axis=1)

  def _sizes(self, num_numbers: int) -> tuple[int, ...]:
    """Equal digits that count far enough."""
    size = max(1, int(round(num_numbers ** (1 / self.num_tokens))))
    while size**self.num_tokens < num_numbers:
      size += 1
    return (size,) * self.num_tokens


def _digits(
  numbers: np.ndarray, sizes: tuple[int, ...]
) -> Int32[np.ndarray, "N P"]:
  """Writes numbers in mixed radix, highest digit first."""
  return np.stack(np.unravel_index(numbers, sizes), axis=1).astype(np.int32)


POLICIES = {
  "none": KeepShared,
  "extra_level": ExtraLevel,
  "random_item": RandomItem,
  "sparse_id": SparseId,
  "knn": reassign.NextNearest,
  "random_last_level": reassign.RandomLastLevel,
  "sinkhorn": reassign.Sinkhorn,
}
