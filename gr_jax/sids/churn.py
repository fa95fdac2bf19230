"""What a refit changed, and how to change less.

A refitted tokenizer names its codes anew, so that IDs of items whose region
of space did not move differ in name alone. `match_codes` finds the names that
keep most IDs, `keep_ids` leaves the rest of an unchanged item's ID in place,
and `report` counts what changed all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import scipy.optimize
from jaxtyping import Bool, Int, Int32

from gr_jax.core import checks
from gr_jax.sids import resolution, sid_catalog


@dataclasses.dataclass(frozen=True)
class ChurnReport:
  """How two catalogs differ; shares are of the items that both hold.

  Attributes:
    num_common: Items of both catalogs.
    num_added: Items of the new catalog alone.
    num_removed: Items of the old catalog alone.
    id_changed: Share of items with another ID.
    code_changed: By level, share of items with another code there.
    prefix_changed: By level, share of items whose codes up to and including
      that level are not all the same.
  """

  num_common: int
  num_added: int
  num_removed: int
  id_changed: float
  code_changed: tuple[float, ...]
  prefix_changed: tuple[float, ...]


def report(
  old: sid_catalog.SidCatalog, new: sid_catalog.SidCatalog
) -> ChurnReport:
  """Counts the items whose semantic ID, or a code of it, changed.

  Items are matched by their external ids.

  Raises:
    InputError: No item is in both, or the IDs have other levels.
  """
  index = old_index(old, new)
  is_common = index >= 0
  if not is_common.any():
    raise checks.InputError(
      f"None of the {new.num_items} items was among the {old.num_items} "
      "before; compare catalogs of one item set."
    )
  old_codes, old_sizes = old.level_codes()
  new_codes, new_sizes = new.level_codes()
  if len(old_sizes) != len(new_sizes):
    raise checks.InputError(
      f"IDs had {len(old_sizes)} levels and now have {len(new_sizes)}; levels "
      "cannot be compared."
    )
  differs = new_codes[is_common] != old_codes[index[is_common]]
  num_common = int(is_common.sum())
  return ChurnReport(
    num_common=num_common,
    num_added=new.num_items - num_common,
    num_removed=old.num_items - num_common,
    id_changed=float(differs.any(axis=1).mean()),
    code_changed=tuple(differs.mean(axis=0).tolist()),
    prefix_changed=tuple(
      np.maximum.accumulate(differs, axis=1).mean(axis=0).tolist()
    ),
  )


def old_index(
  old: sid_catalog.SidCatalog, new: sid_catalog.SidCatalog
) -> Int[np.ndarray, "N"]:
  """Returns each new item's index in the old catalog, -1 where it has none."""
  place = {item_id: index for index, item_id in enumerate(old.item_ids)}
  return np.array([place.get(item_id, -1) for item_id in new.item_ids])


def match_codes(
  old_codes: Int32[np.ndarray, "M L"],
  new_codes: Int32[np.ndarray, "M L"],
  codebook_sizes: Sequence[int],
  *,
  hierarchical: bool = True,
) -> tuple[Int32[np.ndarray, "_"], ...]:
  """Renames new codes so that as many items as can be keep their codes.

  Level by level, the renaming is the assignment of new to old codes that
  most items agree with (Hungarian method; scipy's `linear_sum_assignment`).
  Below level 0 of a hierarchical tokenizer an item counts when its codes so
  far are the old ones, for otherwise its ID is another anyway; the others
  decide ties. A code without items keeps its name where that is free.

  Args:
    old_codes: The earlier tokenizer's codes of items; -1 for none.
    new_codes: The refitted tokenizer's codes of the same items.
    codebook_sizes: Codes of each level, of both.
    hierarchical: False matches each level alone, for parallel tokens.

  Returns:
    For each level a permutation int32 [K]: entry k is the name of new code k.
    The refitted tokenizer's codes must pass through `rename` from then on.

  Raises:
    InputError: No items, or codes outside their codebooks.
  """
  resolution.check_codes(old_codes, codebook_sizes)
  resolution.check_codes(new_codes, codebook_sizes)
  counts = np.ones(old_codes.shape[0], bool)
  names = []
  for level, size in enumerate(codebook_sizes):
    old, new = old_codes[:, level], new_codes[:, level]
    names.append(_match_level(old, new, int(size), counts))
    if hierarchical:
      counts = counts & (_rename_level(new, names[-1]) == old)
  return tuple(names)


def rename(
  codes: Int32[np.ndarray, "N L"], names: Sequence[Int32[np.ndarray, "_"]]
) -> Int32[np.ndarray, "N L"]:
  """Returns codes under the names of `match_codes`; -1 stays -1."""
  columns = [
    _rename_level(codes[:, level], name) for level, name in enumerate(names)
  ]
  return np.stack(columns, axis=1)


def original_names(
  names: Sequence[Int32[np.ndarray, "_"]],
) -> tuple[Int32[np.ndarray, "_"], ...]:
  """Inverts renaming: `rename(rename(codes, names), original_names(names))`.

  A renamed code passes through this before the tokenizer decodes it.
  """
  return tuple(np.argsort(name).astype(np.int32) for name in names)


def keep_ids(
  policy: resolution.CollisionPolicy,
  old_ids: Int32[np.ndarray, "N L2"],
  id_sizes: Sequence[int],
  is_unchanged: Bool[np.ndarray, "N"],
  codes: Int32[np.ndarray, "N L"],
  *,
  key: jax.Array,
  context: resolution.CollisionContext | None = None,
) -> Int32[np.ndarray, "N L2"]:
  """Gives unchanged items their whole old ID, and all others a free one.

  Resolving all collisions anew would number an ID's items differently as
  soon as one of them left it.

  Args:
    policy: The policy of both catalogs.
    old_ids: IDs by level of the earlier catalog, one row for each item now;
      rows of items that are not unchanged are not read.
    id_sizes: Codes of each level of `old_ids`; they bound the new IDs.
    is_unchanged: Items whose (renamed) codes are those of the earlier fit.
    codes: The refitted tokenizer's codes, renamed.
    key: For the policy.
    context: For the policy, over all items.

  Raises:
    InputError: The policy cannot place every changed item beside the
      unchanged ones.
  """
  if is_unchanged.all():
    return old_ids
  changed = np.flatnonzero(~is_unchanged)
  ids = np.empty((codes.shape[0], len(id_sizes)), np.int32)
  ids[is_unchanged] = old_ids[is_unchanged]
  ids[changed] = policy.append(
    old_ids[is_unchanged],
    id_sizes,
    codes[changed],
    key=key,
    context=_of_rows(context, changed),
  )
  return ids


def _of_rows(
  context: resolution.CollisionContext | None, rows: np.ndarray
) -> resolution.CollisionContext | None:
  """Narrows a context to some items."""
  if context is None:
    return None
  distances = context.last_level_distances
  return resolution.CollisionContext(
    last_level_distances=distances and (lambda part: distances(rows[part]))
  )


def _rename_level(codes: np.ndarray, name: np.ndarray) -> np.ndarray:
  return np.where(codes < 0, codes, name[np.maximum(codes, 0)])


def _match_level(
  old: np.ndarray, new: np.ndarray, size: int, counts: np.ndarray
) -> Int32[np.ndarray, "K"]:
  """Returns the name of each new code of one level."""
  both = (old >= 0) & (new >= 0)
  # Only codes that hold items enter the assignment: its cost is cubic.
  new_used, row = np.unique(new[both], return_inverse=True)
  old_used, column = np.unique(old[both], return_inverse=True)
  cell = row * old_used.size + column
  # Items that count outweigh all others together; exact below 2^53.
  weight = np.where(counts[both], float(both.sum() + 1), 0.0) + 1.0
  agreement = np.bincount(cell, weight, new_used.size * old_used.size)
  agreement = agreement.reshape(new_used.size, old_used.size)
  rows, columns = scipy.optimize.linear_sum_assignment(agreement, maximize=True)
  together = agreement[rows, columns] > 0
  name = np.full(size, -1, np.int64)
  name[new_used[rows[together]]] = old_used[columns[together]]
  is_free = np.ones(size, bool)
  is_free[name[name >= 0]] = False
  unnamed = name < 0
  same = np.flatnonzero(unnamed & is_free)
  name[same] = same
  is_free[same] = False
  name[name < 0] = np.flatnonzero(is_free)
  return name.astype(np.int32)
