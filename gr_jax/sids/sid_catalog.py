"""SidCatalog: the semantic ID of every item, as every later stage reads it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from gr_jax.core import artifact, checks
from gr_jax.sids import groups


@dataclasses.dataclass(frozen=True, eq=False)
class SidCatalog:
  """Item index <-> semantic ID, checked on construction.

  A row of `codes` is an item's ID, coarsest level first. IDs may differ in
  length: -1 fills a row after its last code.

  Attributes:
    item_ids: External ids, position = item index.
    codes: The IDs [N, L].
    codebook_sizes: Codes of each of the L columns, policy levels included;
      may exceed what the rows use, which is room for new items.
    num_semantic_levels: Levels the tokenizer wrote; columns a collision
      policy appended come after them.
    hierarchical: Whether a level refines the one before it; False for
      parallel tokens (product quantizers, FSQ, LSH).
    shares_ids: Whether several items may hold one ID.
    level_starts: Where each column's codes begin in the space of all codes,
      None for one column after the other. Where IDs lose a middle level
      (`pack_levels`), column l may also hold codes of level l + 1; its range
      then runs on into the next column's, so that one code is one token
      wherever it stands.

  Raises:
    InputError: Codes outside their codebook, a gap inside an ID, an empty
      ID, a duplicate item id, or shared IDs that were not announced.
  """

  item_ids: tuple[str, ...]
  codes: Int32[np.ndarray, "N L"]
  codebook_sizes: tuple[int, ...]
  num_semantic_levels: int
  hierarchical: bool = True
  shares_ids: bool = False
  level_starts: tuple[int, ...] | None = None

  def __post_init__(self):
    """Checks the whole catalog once; later stages rely on it."""
    _check_shapes(self)
    _check_codes(self.codes, self.codebook_sizes)
    if len(set(self.item_ids)) != len(self.item_ids):
      seen: set[str] = set()
      twice = next(i for i in self.item_ids if i in seen or seen.add(i))
      raise checks.InputError(
        f"Item id {twice!r} appears twice in the SID catalog; give every "
        "item one row."
      )
    if not self.shares_ids:
      found = groups.group_rows(self.codes, self.codebook_sizes)
      if found.largest > 1:
        first = found.order[found.starts[np.argmax(found.counts)]]
        raise checks.InputError(
          f"{found.num_shared} of {self.num_items} items share their semantic "
          f"ID, up to {found.largest} on {tuple(self.codes[first].tolist())}; "
          "resolve collisions with a policy, or set shares_ids=True."
        )

  @property
  def num_items(self) -> int:
    """Items of the catalog, N."""
    return len(self.item_ids)

  @property
  def num_levels(self) -> int:
    """Columns of `codes`, L: the longest ID."""
    return int(self.codes.shape[1])

  @property
  def lengths(self) -> Int32[np.ndarray, "N"]:
    """Codes of each item's ID."""
    return np.sum(self.codes >= 0, axis=1, dtype=np.int32)

  @property
  def is_variable_length(self) -> bool:
    """Whether some ID is shorter than L."""
    return bool(np.any(self.codes[:, -1] < 0))

  @functools.cached_property
  def _index_of_item(self) -> dict[str, int]:
    return {item_id: index for index, item_id in enumerate(self.item_ids)}

  def index_of(self, item_id: str) -> int:
    """Returns an item's index.

    Raises:
      InputError: The catalog does not hold `item_id`.
    """
    if item_id not in self._index_of_item:
      raise checks.InputError(
        f"Item {item_id!r} is not among the {self.num_items} items of the SID "
        "catalog; check the id, or append the item."
      )
    return self._index_of_item[item_id]

  def items_of(self, sid: Sequence[int]) -> tuple[int, ...]:
    """Returns the items that hold exactly this ID, lowest index first.

    Args:
      sid: Codes, coarsest first; trailing -1 may be left out.
    """
    row = np.full(self.num_levels, -1, np.int64)
    if len(sid) > self.num_levels:
      return ()
    row[: len(sid)] = sid
    return tuple(np.flatnonzero((self.codes == row[None]).all(1)).tolist())

  @classmethod
  def from_levels(
    cls,
    item_ids: Sequence[str],
    level_codes: Int32[np.ndarray, "N L"],
    codebook_sizes: Sequence[int],
    *,
    num_semantic_levels: int,
    hierarchical: bool = True,
    shares_ids: bool = False,
  ) -> SidCatalog:
    """Builds a catalog from codes by level, -1 where an ID skips a level.

    Without skipped levels this is the plain constructor; with them the rows
    are closed up by `pack_levels`.
    """
    codes, sizes, starts = pack_levels(level_codes, codebook_sizes)
    return cls(
      item_ids=tuple(item_ids),
      codes=codes,
      codebook_sizes=sizes,
      num_semantic_levels=num_semantic_levels,
      hierarchical=hierarchical,
      shares_ids=shares_ids,
      level_starts=starts,
    )

  def level_codes(self) -> tuple[Int32[np.ndarray, "N L"], tuple[int, ...]]:
    """Inverts `from_levels`: codes by level with gaps, and level sizes."""
    return unpack_levels(self.codes, self.codebook_sizes, self.level_starts)

  def semantic_codes(
    self, codes: Int32[np.ndarray, "*batch L"]
  ) -> Int32[np.ndarray, "*batch L2"]:
    """Returns the tokenizer's part of IDs, by level, -1 where it is left out.

    Args:
      codes: IDs of this catalog's layout, as rows of `codes` are.
    """
    level_codes, _ = unpack_levels(
      codes.reshape(-1, self.num_levels), self.codebook_sizes, self.level_starts
    )
    level_codes = level_codes[:, : self.num_semantic_levels]
    return level_codes.reshape(*codes.shape[:-1], self.num_semantic_levels)

  def append(
    self,
    item_ids: Sequence[str],
    level_codes: Int32[np.ndarray, "M L"],
  ) -> SidCatalog:
    """Returns the catalog with new items after its own; no ID changes.

    Args:
      item_ids: The new items.
      level_codes: Their IDs by level, as for `from_levels`.

    Raises:
      InputError: As the class; or the new IDs need another token layout than
        a model of this catalog has.
    """
    old, sizes = self.level_codes()
    together = np.concatenate([old, level_codes])
    found = groups.group_rows(together, sizes)
    grown = SidCatalog.from_levels(
      (*self.item_ids, *item_ids),
      together,
      sizes,
      num_semantic_levels=self.num_semantic_levels,
      hierarchical=self.hierarchical,
      shares_ids=self.shares_ids or found.largest > 1,
    )
    same = (
      grown.codebook_sizes == self.codebook_sizes
      and grown.level_starts == self.level_starts
    )
    if not same:
      raise checks.InputError(
        f"The {len(item_ids)} new items need IDs of a length that no known "
        "item has, which the model cannot write; tokenize and train again."
      )
    return grown

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns the catalog as arrays for an artifact, codes in few bytes."""
    dtype = np.min_scalar_type(max(self.codebook_sizes) - 1)
    starts = self.level_starts
    return {
      **artifact.prefixed(artifact.pack_strings(self.item_ids), "item_ids"),
      "codes": np.maximum(self.codes, 0).astype(dtype),
      "lengths": self.lengths.astype(np.uint8),
      "codebook_sizes": np.array(self.codebook_sizes, np.int64),
      "level_starts": np.array([] if starts is None else starts, np.int64),
      "num_semantic_levels": np.array(self.num_semantic_levels, np.int64),
      "flags": np.array([self.hierarchical, self.shares_ids], bool),
    }

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SidCatalog:
    """Inverts `to_arrays`."""
    codes = arrays["codes"].astype(np.int32)
    is_code = np.arange(codes.shape[1])[None] < arrays["lengths"][:, None]
    starts = tuple(int(s) for s in arrays["level_starts"])
    hierarchical, shares_ids = (bool(flag) for flag in arrays["flags"])
    return cls(
      item_ids=artifact.unpack_strings(artifact.group(arrays, "item_ids")),
      codes=np.where(is_code, codes, np.int32(-1)),
      codebook_sizes=tuple(int(k) for k in arrays["codebook_sizes"]),
      num_semantic_levels=int(arrays["num_semantic_levels"]),
      hierarchical=hierarchical,
      shares_ids=shares_ids,
      level_starts=starts or None,
    )


def consecutive_starts(codebook_sizes: Sequence[int]) -> tuple[int, ...]:
  """Returns where each level's codes begin when levels stand in a row."""
  sizes = [int(size) for size in codebook_sizes]
  return tuple(sum(sizes[:level]) for level in range(len(sizes)))


def pack_levels(
  level_codes: Int32[np.ndarray, "N L"], codebook_sizes: Sequence[int]
) -> tuple[Int32[np.ndarray, "N L"], tuple[int, ...], tuple[int, ...] | None]:
  """Closes the gaps of IDs that skip levels.

  A code k of level m that moves left into column l becomes
  k + K_l + ... + K_{m-1}: its place counted from the start of column l. The
  column thereby grows by the levels that can move into it.

  >>> codes = np.array([[1, 2, 3], [1, -1, 3]], np.int32)
  >>> packed, sizes, starts = pack_levels(codes, (4, 5, 6))
  >>> packed.tolist(), sizes, starts
  ([[1, 2, 3], [1, 8, -1]], (4, 11, 6), (0, 4, 9))

  Args:
    level_codes: Code of each level, -1 where an ID skips it.
    codebook_sizes: Codes of each level.

  Returns:
    Codes with -1 only at the end, sizes of the columns, and where each
    column starts in the space of all codes (None when nothing was skipped).
  """
  sizes = tuple(int(size) for size in codebook_sizes)
  is_code = level_codes >= 0
  if is_code.all():
    return level_codes, sizes, None
  starts = np.array(consecutive_starts(sizes), np.int32)
  columns = np.cumsum(is_code, axis=1) - 1  # [N, L]
  packed = np.full_like(level_codes, -1)
  rows, levels = np.nonzero(is_code)
  columns = columns[rows, levels]
  packed[rows, columns] = (
    level_codes[rows, levels] + starts[levels] - starts[columns]
  )
  # The deepest level that stands in a column decides where its range ends.
  deepest = np.arange(len(sizes))
  np.maximum.at(deepest, columns, levels)
  ends = (starts + np.array(sizes, np.int32))[deepest]
  return packed, tuple((ends - starts).tolist()), tuple(starts.tolist())


def unpack_levels(
  codes: Int32[np.ndarray, "N L"],
  codebook_sizes: Sequence[int],
  level_starts: Sequence[int] | None,
) -> tuple[Int32[np.ndarray, "N L"], tuple[int, ...]]:
  """Inverts `pack_levels`: codes by level, -1 in the gaps; level sizes."""
  sizes = tuple(int(size) for size in codebook_sizes)
  if level_starts is None:
    return codes, sizes
  starts = np.array(level_starts, np.int32)
  rows, columns = np.nonzero(codes >= 0)
  places = codes[rows, columns] + starts[columns]
  levels = np.searchsorted(starts, places, side="right") - 1
  level_codes = np.full_like(codes, -1)
  level_codes[rows, levels] = places - starts[levels]
  level_sizes = (*np.diff(starts).tolist(), sizes[-1])
  return level_codes, level_sizes


def _check_shapes(catalog: SidCatalog) -> None:
  num_rows, num_levels = catalog.codes.shape
  if num_rows != len(catalog.item_ids) or num_rows == 0:
    raise checks.InputError(
      f"The SID catalog has {len(catalog.item_ids)} item ids for {num_rows} "
      "rows of codes; it needs one row for each of at least one item."
    )
  sizes = catalog.codebook_sizes
  if len(sizes) != num_levels or num_levels == 0:
    raise checks.InputError(
      f"codebook_sizes {sizes} must name one size for each of the "
      f"{num_levels} levels of codes, at least one."
    )
  starts = catalog.level_starts
  if starts is not None and (
    len(starts) != num_levels or list(starts) != sorted(set(starts))
  ):
    raise checks.InputError(
      f"level_starts {starts} must rise, one entry for each of the "
      f"{num_levels} levels."
    )
  if not 1 <= catalog.num_semantic_levels <= num_levels:
    raise checks.InputError(
      f"num_semantic_levels={catalog.num_semantic_levels} must lie in "
      f"1..{num_levels}, the levels of codes."
    )


def _check_codes(codes: np.ndarray, codebook_sizes: tuple[int, ...]) -> None:
  sizes = np.array(codebook_sizes, np.int64)
  outside = (codes < -1) | (codes >= sizes[None])
  if outside.any():
    row, level = (int(i) for i in np.argwhere(outside)[0])
    raise checks.InputError(
      f"Code {codes[row, level]} of item index {row} at level {level} is "
      f"outside its codebook of {codebook_sizes[level]}; {outside.sum()} "
      "codes are. Was the catalog built with other codebook sizes?"
    )
  is_code = codes >= 0
  if not is_code[:, 0].all():
    row = int(np.argmin(is_code[:, 0]))
    raise checks.InputError(
      f"Item index {row} has an empty semantic ID; every ID needs a code at "
      "level 0."
    )
  gap = is_code[:, 1:] & ~is_code[:, :-1]
  if gap.any():
    row = int(np.argwhere(gap)[0, 0])
    raise checks.InputError(
      f"The semantic ID {tuple(codes[row].tolist())} of item index {row} has "
      "a gap; -1 may only fill its end (use SidCatalog.from_levels)."
    )
