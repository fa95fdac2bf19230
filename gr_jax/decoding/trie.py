"""Builds the prefix trie of a catalog's semantic IDs, on the host, in NumPy.

Nodes of depth l are the distinct prefixes of length l in sorted order, and a
node's number is its rank. A child's number is therefore the position of its
edge in the level: an edge stores its code and nothing else, no next node. The
items under any node are a contiguous range of the sorted catalog.

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


@struct.dataclass
class TrieLevel:
  """Edges from depth l to depth l + 1; P_l nodes lead to P_{l+1} children.

  Arrays that are the identity are None: `child_start` where every node has
  exactly one child, `item_start` where every child holds exactly one item.
  """

  child_start: Any  # int32 [P_l + 1], or None: child of node p is p
  child_code: Any  # uint8/16/32 [P_{l+1}], ascending among siblings
  child_bits: Any  # uint32 [P_l, words], bit c set: c is a child; or None
  item_start: Any  # int32 [P_{l+1} + 1], sorted items of a child; or None
  num_nodes: int = struct.field(pytree_node=False)  # P_l
  num_children: int = struct.field(pytree_node=False)  # P_{l+1}
  max_children: int = struct.field(pytree_node=False)  # M, of one node
  width: int = struct.field(pytree_node=False)  # K_l, + 1 with `has_end`


@struct.dataclass
class Trie:
  """A catalog's semantic IDs as flat arrays; host or device, a pytree.

  Leaves are the P_L distinct IDs in sorted order, an ID before those that
  extend it. `item_order` lists item indices by leaf, then by item index.
  """

  levels: tuple[TrieLevel, ...]
  leaf_start: Any  # int32 [P_L + 1] into item_order; None: one item a leaf
  item_order: Any  # int32 [N], item index at each sorted position
  item_position: Any  # int32 [N], the inverse of item_order
  codebook_sizes: tuple[int, ...] = struct.field(pytree_node=False)
  has_end: bool = struct.field(pytree_node=False)  # IDs of unequal length

  @property
  def num_levels(self) -> int:
    """L, the most codes an ID has."""
    return len(self.levels)

  @property
  def num_items(self) -> int:
    """N."""
    return self.item_order.shape[0]

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
  narrow_children: int = NARROW_CHILDREN,
  dense_bytes: int = DENSE_BYTES,
) -> Trie:
  """Builds the trie; any row order, rows may repeat (items sharing an ID).

  >>> trie = build_trie(np.array([[1, 0], [0, 2], [0, 2]]), (2, 3))
  >>> trie.item_order.tolist(), trie.leaf_start.tolist()
  ([1, 2, 0], [0, 2, 3])

  Args:
    codes: int [N, L], row i is item i's ID; -1 after its last code.
    codebook_sizes: K_l of each level.
    narrow_children: Most children of a node for which a level has no bitmask.
    dense_bytes: Largest bitmask of one level, in bytes.

  Returns:
    A trie of NumPy arrays; `jax.device_put` moves it.

  Raises:
    InputError: No items, a wrong number of levels, a code outside its
      codebook, an ID without codes, or a code after an ID's end.
  """
  codebook_sizes = tuple(int(k) for k in codebook_sizes)
  _check_codes(codes, codebook_sizes)
  has_end = bool((codes[:, -1] < 0).any())
  widths = tuple(k + has_end for k in codebook_sizes)
  order, columns = _sort_rows(codes, widths, has_end)
  num_items = len(order)

  # new[i]: sorted row i starts a new node of the depth reached so far.
  new = np.zeros(num_items, bool)
  new[0] = True
  starts, level_codes, item_starts = [], [], []
  for column in columns:
    parent_new = new.copy()
    new[1:] |= column[1:] != column[:-1]
    rows = np.flatnonzero(new)  # [P_{l+1}]
    starts.append(_offsets(np.flatnonzero(parent_new[rows]), len(rows)))
    level_codes.append(column[rows])
    item_starts.append(_offsets(rows, num_items))
  levels = tuple(
    _make_level(start, code, item_start, width, narrow_children, dense_bytes)
    for start, code, item_start, width in zip(
      starts, level_codes, item_starts, widths, strict=True
    )
  )
  position = np.empty(num_items, np.int32)
  position[order] = np.arange(num_items, dtype=np.int32)
  return Trie(
    levels=levels,
    leaf_start=levels[-1].item_start,
    item_order=order,
    item_position=position,
    codebook_sizes=codebook_sizes,
    has_end=has_end,
  )


def to_arrays(trie: Trie) -> dict[str, np.ndarray]:
  """Returns the trie as named arrays for an artifact."""
  arrays = {
    "codebook_sizes": np.array(trie.codebook_sizes, np.int64),
    "has_end": np.array(trie.has_end),
    "item_order": np.asarray(trie.item_order),
  }
  for l, level in enumerate(trie.levels):
    for name in ("child_start", "child_code", "child_bits", "item_start"):
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
    order = np.asarray(arrays["item_order"])
    codes = [arrays[f"level_{l}_child_code"] for l in range(len(sizes))]
  except KeyError as error:
    raise InputError(
      f"Trie arrays lack {error.args[0]!r}; build the trie again."
    ) from None
  levels, num_nodes = [], 1
  for l, code in enumerate(codes):
    start = arrays.get(f"level_{l}_child_start")
    levels.append(
      TrieLevel(
        child_start=start,
        child_code=code,
        child_bits=arrays.get(f"level_{l}_child_bits"),
        item_start=arrays.get(f"level_{l}_item_start"),
        num_nodes=num_nodes,
        num_children=len(code),
        max_children=1 if start is None else int(np.diff(start).max()),
        width=sizes[l] + has_end,
      )
    )
    num_nodes = len(code)
  position = np.empty(len(order), np.int32)
  position[order] = np.arange(len(order), dtype=np.int32)
  return Trie(
    levels=tuple(levels),
    leaf_start=levels[-1].item_start,
    item_order=order,
    item_position=position,
    codebook_sizes=sizes,
    has_end=has_end,
  )


def _check_codes(codes, codebook_sizes):
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


def _sort_rows(codes, widths, has_end):
  """Sorts rows; returns (order int32 [N], sorted stored codes per level)."""
  num_items, num_levels = codes.shape
  bits = [max(1, int(w - 1).bit_length()) for w in widths]
  # Pack levels into as few 64-bit words as they need, the first level highest.
  words, places, free = [], [], 0
  for l in range(num_levels):
    if bits[l] > free:
      words.append(np.zeros(num_items, np.uint64))
      free = 64
    free -= bits[l]
    places.append((len(words) - 1, free))
    column = codes[:, l].astype(np.int64) + has_end
    words[-1] |= column.astype(np.uint64) << np.uint64(free)
  if np.all(words[0][1:] > words[0][:-1]):
    order = np.arange(num_items)
  else:
    # Sort by the first word, then mend the runs that it leaves equal; with
    # wide IDs those are few, and one fast unstable sort does nearly all.
    order = np.argsort(words[0])
    words = [word[order] for word in words]
    equal = words[0][1:] == words[0][:-1]
    if equal.any():
      run = np.zeros(num_items, bool)
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
      _code_dtype(widths[l])
    )
    for l, (word, place) in enumerate(places)
  ]
  return order.astype(np.int32), columns


def _make_level(start, code, item_start, width, narrow_children, dense_bytes):
  num_nodes = len(start) - 1
  max_children = int(np.diff(start).max())
  words = -(-width // 32)
  dense = max_children > narrow_children
  if dense and num_nodes * words * 4 <= dense_bytes:
    bits = _bitmask(start, code, num_nodes, words)
  else:
    bits = None
  return TrieLevel(
    child_start=start if max_children > 1 else None,
    child_code=code,
    child_bits=bits,
    item_start=item_start if item_start[-1] > len(code) else None,
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


def _offsets(starts, end):
  return np.append(starts, end).astype(np.int32)


def _code_dtype(width):
  if width <= 1 << 8:
    return np.uint8
  return np.uint16 if width <= 1 << 16 else np.uint32
