"""What every collision policy takes, returns and checks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Int32

from gr_jax.core import checks
from gr_jax.sids import groups


@dataclasses.dataclass(frozen=True)
class CollisionContext:
  """What some policies need beyond the codes.

  Attributes:
    last_level_distances: Takes item indices int [M] and returns the squared
      distances float32 [M, K] of their last residuals to the last level's
      codes. Called by chunk, so that no N x K array ever exists.
  """

  last_level_distances: Callable[[np.ndarray], np.ndarray] | None = None


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


@runtime_checkable
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
      context: Distances, for the policies that read them.

    Raises:
      InputError: The policy cannot place every item.
    """
    ...

  def append(
    self,
    ids: Int32[np.ndarray, "N L2"],
    id_sizes: Sequence[int],
    codes: Int32[np.ndarray, "M L"],
    *,
    key: jax.Array,
    context: CollisionContext | None = None,
  ) -> Int32[np.ndarray, "M L2"]:
    """Returns IDs for new items; those that exist stay as they are.

    Args:
      ids: What `resolve` returned, and what earlier calls of this appended.
      id_sizes: Codes of each level of `ids`; they bound the new IDs too.
      codes: The tokenizer's codes of the new items.
      key: As for `resolve`.
      context: As for `resolve`, over the new items alone.

    Raises:
      InputError: Some new items find no free ID; it says how many.
    """
    ...


def check_and_group(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int]
) -> groups.Groups:
  """Groups items by equal codes, refusing codes outside their codebook.

  Raises:
    InputError: No items, sizes that do not match, or a code out of range.
  """
  check_codes(codes, codebook_sizes)
  return groups.group_rows(codes, codebook_sizes)


def check_codes(
  codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int]
) -> None:
  """Refuses codes outside their codebook; -1 means no code.

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
