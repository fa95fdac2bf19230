"""Builds the prefix trie of a catalog's semantic IDs, on the host, in NumPy.

Nodes of depth l are the distinct prefixes of length l in sorted order, and a
node's number is its rank. A child's number is therefore the position of its
edge in the level: an edge stores its code and nothing else, no next node. The
items under any node are a contiguous range of the sorted catalog.

A range starts at or after its node's own number, since no node is empty. Only
the difference is stored ("extra"), in the smallest dtype, and not at all where
every node has one child: most of a large catalog's deep levels.

An ID that ends after d < L codes is stored as a full path: codes move up by
one and 0 stands for "ends here", repeated down to depth L (`has_end`). So every
ID is a leaf of depth L, an ID sorts before its extensions, and a finished beam
walks a chain of single children that cost nothing.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Int

from gr_jax.core.checks import InputError

# A level is a bitmask when some node has more children than this: up to here,
# gathering the children beats scanning a row of the vocabulary for them.
NARROW_CHILDREN = 64
# Largest bitmask of one level. Past it the level's children are gathered,
# however many they are.
DENSE_BYTES = 1 << 30

_LEVEL_ARRAYS = ("child_extra", "child_code", "child_bits", "item_extra")


@struct.dataclass
class TrieLevel:
  """Edges from depth l to depth l + 1; P_l nodes lead to P_{l+1} children.

  The children of node p are p + child_extra[p] up to, not including,
  p + 1 + child_extra[p + 1]; `item_extra` gives the sorted items of each
  child in the same way. None stands for all zeros.
  """

  child_extra: Any  # uint8/16/32 [P_l + 1], or None: the child of p is p
  child_code: Any  # uint8/16/32 [P_{l+1}], ascending among siblings
  child_bits: Any  # uint32 [P_l, words], bit c set: c is a child; or None
  item_extra: Any  # uint8/16/32 [P_{l+1} + 1], or None: one item a child
  num_nodes: int = struct.field(pytree_node=False)  # P_l
  num_children: int = struct.field(pytree_node=False)  # P_{l+1}
  max_children: int = struct.field(pytree_node=False)  # M, of one node
  width: int = struct.field(pytree_node=False)  # K_l, + 1 with `has_end`


@struct.dataclass
class Trie:
  """A catalog's semantic IDs as flat arrays; host or device, a pytree.

  Leaves are the P_L distinct IDs in sorted order, an ID before those that
  extend it. The items of a leaf lie side by side, lowest item index first.
  """

  levels: tuple[TrieLevel, ...]
  # Item index at each sorted position and its inverse, -1 for items that were
  # removed; both None where the catalog was sorted already.
  item_order: Any  # int32 [num_items] or None
  item_position: Any  # int32 [catalog_size] or None
  codebook_sizes: tuple[int, ...] = struct.field(pytree_node=False)
  has_end: bool = struct.field(pytree_node=False)  # IDs of unequal length
  num_items: int = struct.field(pytree_node=False)  # that can be decoded
  catalog_size: int = struct.field(pytree_node=False)  # N, removed included

  @property
  def num_levels(self) -> int:
    """L, the most codes an ID has."""
    return len(self.levels)

  @property
  def num_leaves(self) -> int:
    """P_L, the number of distinct IDs."""
    return self.levels[-1].num_children

  @property
  def num_bytes(self) -> int:
    """Size of all arrays."""
    return sum(int(a.nbytes) for a in jax.tree.leaves(self))


def build_trie(
  codes: Int[np.ndarray, "N L"],
  codebook_sizes: tuple[int, ...],
  *,
  item_index: Int[np.ndarray, "R"] | None = None,
  catalog_size: int | None = None,
  narrow_children: int = NARROW_CHILDREN,
  dense_bytes: int = DENSE_BYTES,
) -> Trie:
  """Builds the trie; any row order, rows may repeat (items sharing an ID).

  >>> trie = build_trie(np.array([[1, 0], [0, 2], [0, 2]]), (2, 3))
  >>> trie.num_leaves, trie.item_order.tolist()
  (2, [1, 2, 0])

  Args:
    codes: int [N, L], row i is item i's ID; -1 after its last code.
    codebook_sizes: K_l of each level.
    item_index: The items that the rows are, ascending, where the trie holds
      only some of a catalog; None: all, in order.
    catalog_size: Items of the catalog, held or not; with `item_index`.
    narrow_children: Most children of a node for which a level has no bitmask.
    dense_bytes: Largest bitmask of one level, in bytes.

  Returns:
    A trie of NumPy arrays; `jax.device_put` moves it.

  Raises:
    InputError: No items, a wrong number of levels, a code outside its
      codebook, an ID without codes, a code after an ID's end, or item
      indices that do not ascend within the catalog.
  """
  codebook_sizes = tuple(int(k) for k in codebook_sizes)
  check_codes(codes, codebook_sizes)
  has_end = bool((codes[:, -1] < 0).any())
  order, columns = sort_rows(codes, codebook_sizes, has_end)
  if item_index is None:
    catalog_size = len(order)
  else:
    _check_item_index(item_index, len(order), catalog_size)
    order = item_index[order]
  return from_sorted(
    order,
    columns,
    codebook_sizes,
    has_end,
    catalog_size,
    narrow_children=narrow_children,
    dense_bytes=dense_bytes,
  )


def from_sorted(
  order: Int[np.ndarray, "N"],
  columns: list[np.ndarray],
  codebook_sizes: tuple[int, ...],
  has_end: bool,
  catalog_size: int,
  *,
  narrow_children: int = NARROW_CHILDREN,
  dense_bytes: int = DENSE_BYTES,
) -> Trie:
  """Builds the trie of rows that are sorted already; linear in their number.

  Args:
    order: Item index of each row.
    columns: Per level the stored codes of the rows, [N] each.
    codebook_sizes: K_l of each level.
    has_end: Whether stored code 0 means that an ID ended.
    catalog_size: Item indices that exist, removed ones included.
    narrow_children: As for `build_trie`.
    dense_bytes: As for `build_trie`.
  """
  num_rows = len(order)
  # new[i]: row i starts a new node of the depth reached so far.
  new = np.zeros(num_rows, bool)
  new[0] = True
  levels = []
  for column, size in zip(columns, codebook_sizes, strict=True):
    was_new = new.copy()
    new[1:] |= column[1:] != column[:-1]
    rows = np.flatnonzero(new)  # [P_{l+1}], first row of each child
    levels.append(
      _make_level(
        start=np.append(np.flatnonzero(was_new[rows]), len(rows)),
        code=column[rows],
        item_start=np.append(rows, num_rows),
        width=size + has_end,
        narrow_children=narrow_children,
        dense_bytes=dense_bytes,
      )
    )
  position = None
  if num_rows == catalog_size and np.array_equal(order, np.arange(num_rows)):
    order = None
  else:
    order = order.astype(np.int32)
    position = _positions(order, catalog_size)
  return Trie(
    levels=tuple(levels),
    item_order=order,
    item_position=position,
    codebook_sizes=codebook_sizes,
    has_end=has_end,
    num_items=num_rows,
    catalog_size=catalog_size,
  )


def to_arrays(trie: Trie) -> dict[str, np.ndarray]:
  """Returns the trie as named arrays for an artifact."""
  arrays = {
    "codebook_sizes": np.array(trie.codebook_sizes, np.int64),
    "has_end": np.array(trie.has_end),
    "sizes": np.array([trie.num_items, trie.catalog_size], np.int64),
  }
  if trie.item_order is not None:
    arrays["item_order"] = np.asarray(trie.item_order)
  for l, level in enumerate(trie.levels):
    for name in _LEVEL_ARRAYS:
      value = getattr(level, name)
      if value is not None:
        arrays[f"level_{l}_{name}"] = np.asarray(value)
  return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Trie:
  """Rebuilds the trie that `to_arrays` took apart.

  Raises:
    InputError: An array is missing.
  """
  try:
    sizes = tuple(int(k) for k in arrays["codebook_sizes"])
    has_end = bool(arrays["has_end"])
    num_items, catalog_size = (int(n) for n in arrays["sizes"])
    codes = [arrays[f"level_{l}_child_code"] for l in range(len(sizes))]
  except KeyError as error:
    raise InputError(
      f"Trie arrays lack {error.args[0]!r}; build the trie again."
    ) from None
  levels, num_nodes = [], 1
  for l, code in enumerate(codes):
    extra, _, bits, item_extra = (
      arrays.get(f"level_{l}_{name}") for name in _LEVEL_ARRAYS
    )
    levels.append(
      TrieLevel(
        child_extra=extra,
        child_code=code,
        child_bits=bits,
        item_extra=item_extra,
        num_nodes=num_nodes,
        num_children=len(code),
        max_children=_max_children(extra),
        width=sizes[l] + has_end,
      )
    )
    num_nodes = len(code)
  order = arrays.get("item_order")
  return Trie(
    levels=tuple(levels),
    item_order=order,
    item_position=None if order is None else _positions(order, catalog_size),
    codebook_sizes=sizes,
    has_end=has_end,
    num_items=num_items,
    catalog_size=catalog_size,
  )


def check_codes(
  codes: Int[np.ndarray, "N L"], codebook_sizes: tuple[int, ...]
) -> None:
  """Refuses codes that are no IDs; see `build_trie`."""
  if codes.shape[0] == 0:
    raise InputError("A trie needs at least one item; the catalog is empty.")
  if codes.shape[0] >= 2**31 - 1:
    raise InputError(f"A trie holds < 2^31 - 1 items; got {codes.shape[0]}.")
  if codes.shape[1] != len(codebook_sizes) or not codebook_sizes:
    raise InputError(
      f"codes have {codes.shape[1]} levels but codebook_sizes names "
      f"{len(codebook_sizes)}; pass the sizes of the same catalog."
    )
  ended = np.zeros(codes.shape[0], bool)
  for l, size in enumerate(codebook_sizes):
    column = codes[:, l]
    bad = (column < -1) | (column >= size)
    if bad.any():
      row = int(np.flatnonzero(bad)[0])
      raise InputError(
        f"Item {row} has code {int(column[row])} at level {l}, outside "
        f"[0, {size}); -1 marks levels after an ID's end."
      )
    end = column < 0
    if l == 0 and end.any():
      row = int(np.flatnonzero(end)[0])
      raise InputError(f"Item {row} has no code at level 0; drop the item.")
    back = ended & ~end
    if back.any():
      row = int(np.flatnonzero(back)[0])
      raise InputError(
        f"Item {row} has a code at level {l} after -1; pad at the end only."
      )
    ended = end


def _check_item_index(item_index, num_rows, catalog_size):
  if catalog_size is None or len(item_index) != num_rows:
    raise InputError(
      f"item_index needs catalog_size and one item for each of {num_rows} "
      f"IDs; got {len(item_index)} items, {catalog_size=}."
    )
  ascends = np.all(item_index[1:] > item_index[:-1])
  if not ascends or item_index[0] < 0 or item_index[-1] >= catalog_size:
    raise InputError(
      f"item_index must ascend within [0, {catalog_size}); sort the items."
    )


def sort_rows(
  codes: Int[np.ndarray, "N L"], codebook_sizes: tuple[int, ...], has_end: bool
) -> tuple[Int[np.ndarray, "N"], list[np.ndarray]]:
  """Sorts IDs, equal ones by row; returns order and stored codes by level."""
  widths = [k + has_end for k in codebook_sizes]
  bits = [max(1, int(w - 1).bit_length()) for w in widths]
  # Pack levels into as few 64-bit words as they need, the first level highest.
  words, places, free = [], [], 0
  for l in range(len(widths)):
    if bits[l] > free:
      words.append(np.zeros(len(codes), np.uint64))
      free = 64
    free -= bits[l]
    places.append((len(words) - 1, free))
    column = (codes[:, l].astype(np.int64) + has_end).astype(np.uint64)
    words[-1] |= column << np.uint64(free)
  if np.all(words[0][1:] > words[0][:-1]):
    order = np.arange(len(codes))
  else:
    # Sort by the first word, then mend the runs that it leaves equal; with
    # wide IDs those are few, and one fast unstable sort does nearly all.
    order = np.argsort(words[0])
    words = [word[order] for word in words]
    equal = words[0][1:] == words[0][:-1]
    if equal.any():
      run = np.zeros(len(codes), bool)
      run[1:] |= equal
      run[:-1] |= equal
      run = np.flatnonzero(run)
      keys = (order[run], *(word[run] for word in reversed(words)))
      fixed = run[np.lexsort(keys)]
      order[run] = order[fixed]
      for word in words:
        word[run] = word[fixed]
  columns = [
    ((words[word] >> np.uint64(place)) & np.uint64((1 << bits[l]) - 1)).astype(
      _smallest(widths[l] - 1)
    )
    for l, (word, place) in enumerate(places)
  ]
  return order, columns


def _make_level(
  *, start, code, item_start, width, narrow_children, dense_bytes
):
  num_nodes = len(start) - 1
  max_children = int(np.diff(start).max())
  words = -(-width // 32)
  bits = None
  if max_children > narrow_children and num_nodes * words * 4 <= dense_bytes:
    bits = _bitmask(start, code, num_nodes, words)
  return TrieLevel(
    child_extra=_extra(start),
    child_code=code,
    child_bits=bits,
    item_extra=_extra(item_start),
    num_nodes=num_nodes,
    num_children=len(code),
    max_children=max_children,
    width=width,
  )


def _bitmask(start, code, num_nodes, words):
  parent = np.repeat(np.arange(num_nodes), np.diff(start))  # [P_{l+1}]
  word = parent * words + (code >> 5)
  bit = np.uint32(1) << (code & 31).astype(np.uint32)
  first = np.flatnonzero(np.append(True, word[1:] != word[:-1]))
  bits = np.zeros(num_nodes * words, np.uint32)
  bits[word[first]] = np.bitwise_or.reduceat(bit, first)
  return bits.reshape(num_nodes, words)


def _extra(start):
  extra = start - np.arange(len(start))
  if extra[-1] == 0:
    return None
  return extra.astype(_smallest(extra[-1]))


def _max_children(extra):
  if extra is None:
    return 1
  return 1 + int(np.diff(extra.astype(np.int64)).max())


def _positions(order, catalog_size):
  position = np.full(catalog_size, -1, np.int32)
  position[order] = np.arange(len(order), dtype=np.int32)
  return position


def _smallest(largest):
  """Returns the smallest unsigned dtype that holds `largest`."""
  return np.min_scalar_type(int(largest))
