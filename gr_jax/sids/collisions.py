"""Collision policies: from codes that items may share to semantic IDs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Int32

from gr_jax.core import checks
from gr_jax.sids import groups


@dataclasses.dataclass(frozen=True)
class CollisionContext:
  """What some policies need beyond the codes; each says which it reads.

  Attributes:
    last_level_distances: Takes item indices int [M] and returns the squared
      distances float32 [M, K] of their last residuals to the last level's
      codes. Called by chunk, so that no N x K array ever exists.
    sparse_ids: Sparse IDs of the items, int32 [N] or [N, P].
  """

  last_level_distances: Callable[[np.ndarray], np.ndarray] | None = None
  sparse_ids: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Resolution:
  """What a policy made of the codes.

  Attributes:
    codes: IDs by level; -1 where the input had -1 [N, L'].
    codebook_sizes: Codes of each of the L' levels.
    shares_ids: Whether several items still may hold one ID.
    num_shared: Items that shared their codes before the policy ran.
    largest_bucket: Items on the most crowded ID before the policy ran.
    num_moved: Items whose tokenizer codes the policy changed.
  """

  codes: Int32[np.ndarray, "N L"]
  codebook_sizes: tuple[int, ...]
  shares_ids: bool
  num_shared: int
  largest_bucket: int
  num_moved: int = 0


class CollisionPolicy(Protocol):
  """A frozen dataclass of options that resolves collisions."""

  def resolve(
    self,
    codes: Int32[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
    *,
    key: jax.Array,
    context: CollisionContext | None = None,
  ) -> Resolution:
    """Returns IDs for all items, or refuses with counts.

    Args:
      codes: The tokenizer's codes; -1 where an ID skips a level.
      codebook_sizes: Codes of each level.
      key: Drives random choices; unused by deterministic policies.
      context: Distances or sparse ids, for the policies that read them.

    Raises:
      InputError: The policy cannot place every item.
    """
    ...


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


def check_and_group(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int]
) -> groups.Groups:
  """Groups items by equal codes, refusing codes outside their codebook.

  Raises:
    InputError: No items, sizes that do not match, or a code out of range.
  """
  if codes.shape[0] == 0 or codes.shape[1] != len(codebook_sizes):
    raise checks.InputError(
      f"Codes of shape {codes.shape} need at least one item and one size per "
      f"level; got codebook_sizes {tuple(codebook_sizes)}."
    )
  sizes = np.array(codebook_sizes, np.int64)
  outside = (codes < -1) | (codes >= sizes[None])
  if outside.any():
    row, level = (int(i) for i in np.argwhere(outside)[0])
    raise checks.InputError(
      f"Code {codes[row, level]} of item index {row} at level {level} is "
      f"outside its codebook of {codebook_sizes[level]}."
    )
  return groups.group_rows(codes, codebook_sizes)


POLICIES = {
  "none": KeepShared,
  "extra_level": ExtraLevel,
}
