"""Makes a changed catalog's trie from the old one, without a new sort.

Item indices never change: an appended item takes the next free one, a removed
item keeps its own and is simply never decoded again. The trained model and
everything that names items by index stay valid.
"""

import numpy as np
from jaxtyping import Bool, Int

from gr_jax.core.checks import InputError
from gr_jax.decoding import trie as trie_lib


def sorted_codes(trie: trie_lib.Trie) -> list[np.ndarray]:
  """Returns the stored codes of the items in sorted order, [N] each level."""
  columns = []
  for level in trie.levels:
    code = np.asarray(level.child_code)
    columns.append(np.repeat(code, _item_counts(level)))
  return columns


def update(
  trie: trie_lib.Trie,
  codes: Int[np.ndarray, "N L"],
  held: Bool[np.ndarray, "N"] | None = None,
) -> trie_lib.Trie:
  """Returns the trie of a changed catalog; the old one is untouched.

  >>> old = trie_lib.build_trie(np.array([[1, 0], [0, 2]]), (2, 3))
  >>> new = update(old, np.array([[1, 0], [0, 2], [0, 1]]))
  >>> new.item_order.tolist()
  [2, 1, 0]

  It is what `build_trie` makes of the same items, but only what changed is
  sorted.

  Args:
    trie: Host trie of the catalog as it was.
    codes: int [N, L], the IDs of all items as they are now, by item index.
    held: The items to hold; None: all.

  Raises:
    InputError: Codes that `build_trie` refuses, fewer items than the old
      catalog has, or none to hold.
  """
  trie_lib.check_codes(codes, trie.codebook_sizes)
  held = np.ones(len(codes), bool) if held is None else held
  if len(codes) < trie.catalog_size:
    raise InputError(
      f"Need the IDs of all items, at least the trie's {trie.catalog_size}; "
      f"got {len(codes)}."
    )
  if not held.any():
    raise InputError("A trie needs at least one item; hold one.")
  has_end = bool((codes[held, -1] < 0).any())
  if trie.has_end and not has_end:  # nothing of the old one fits
    return _build(trie, codes, held)
  order, columns = _order(trie), sorted_codes(trie)
  same, rows = held[order], codes[order]  # one read of scattered rows
  for l, column in enumerate(columns):
    same &= rows[:, l] == column.astype(np.int32) - trie.has_end
  stays = np.zeros(len(codes), bool)
  stays[order[same]] = True
  fresh = np.flatnonzero(held & ~stays)
  if len(fresh) == held.sum():
    return _build(trie, codes, held)
  order = order[same]
  columns = [column[same] for column in columns]
  if has_end and not trie.has_end:  # room for the ends
    columns = [
      (column.astype(np.int64) + 1).astype(np.min_scalar_type(size))
      for column, size in zip(columns, trie.codebook_sizes, strict=True)
    ]
  if len(fresh):
    turn, new = trie_lib.sort_rows(codes[fresh], trie.codebook_sizes, has_end)
    fresh = fresh[turn]
    place = _insert_positions(columns, order, new, fresh)
    order = np.insert(order, place, fresh)
    columns = [
      np.insert(old, place, column)
      for old, column in zip(columns, new, strict=True)
    ]
  return trie_lib.from_sorted(
    order, columns, trie.codebook_sizes, has_end, len(codes)
  )


def _build(trie, codes, held):
  index = np.flatnonzero(held)
  return trie_lib.build_trie(
    codes[index],
    trie.codebook_sizes,
    item_index=index,
    catalog_size=len(codes),
  )


def _order(trie):
  if trie.item_order is None:
    return np.arange(trie.num_items)
  return np.asarray(trie.item_order)


def _item_counts(level):
  if level.item_extra is None:
    return 1
  return 1 + np.diff(np.asarray(level.item_extra).astype(np.int64))


def _insert_positions(old, old_order, new, new_order):
  """Returns where each new row goes among the old, [M]; equal IDs by index.

  A binary search over rows of several columns: each new row narrows its own
  range of old rows column by column.
  """
  low = np.zeros(len(new_order), np.int64)
  high = np.full(len(new_order), len(old_order), np.int64)
  for old_column, new_column in zip(
    (*old, old_order), (*new, new_order), strict=True
  ):
    low, high = (
      _search(old_column, low, high, new_column, side)
      for side in ("left", "right")
    )
  return low


def _search(column, low, high, value, side):
  """Binary search of value[i] in column[low[i]:high[i]], all i at once."""
  low, high = low.copy(), high.copy()
  while True:
    open_ = low < high
    if not open_.any():
      return low
    middle = (low + high) // 2
    at = column[np.minimum(middle, len(column) - 1)]
    right = at < value if side == "left" else at <= value
    low = np.where(open_ & right, middle + 1, low)
    high = np.where(open_ & ~right, middle, high)
