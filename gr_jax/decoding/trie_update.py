"""Adds items to a trie and removes them, on the host, without a new sort.

Item indices never change: an added item takes the next free one (or the one it
is given), a removed item keeps its own and is simply never decoded again. The
trained model and everything that names items by index stay valid.
"""

import numpy as np
from jaxtyping import Int

from gr_jax.core.checks import InputError
from gr_jax.decoding import trie as trie_lib


def sorted_codes(trie: trie_lib.Trie) -> list[np.ndarray]:
  """Returns the stored codes of the items in sorted order, [N] each level."""
  columns = []
  for level in trie.levels:
    code = np.asarray(level.child_code)
    columns.append(np.repeat(code, _item_counts(level)))
  return columns


def item_codes(trie: trie_lib.Trie) -> Int[np.ndarray, "N L"]:
  """Returns every item's ID by item index; removed items have -1 only."""
  codes = np.full((trie.catalog_size, trie.num_levels), -1, np.int32)
  order = _order(trie)
  for l, column in enumerate(sorted_codes(trie)):
    codes[order, l] = column.astype(np.int32) - trie.has_end
  return codes


def add_items(
  trie: trie_lib.Trie,
  codes: Int[np.ndarray, "M L"],
  *,
  item_index: Int[np.ndarray, "R"] | None = None,
) -> trie_lib.Trie:
  """Returns a trie that also holds new items; the old one is untouched.

  Args:
    trie: Host trie.
    codes: int [M, L], the new items' IDs, -1 after the last code. An ID may
      exist already: the items then share it.
    item_index: Where the items belong, e.g. to bring back removed ones. None
      appends them to the catalog.

  Raises:
    InputError: Codes that `build_trie` refuses, or an index that is taken.
  """
  trie_lib.check_codes(codes, trie.codebook_sizes)
  if item_index is None:
    item_index = trie.catalog_size + np.arange(len(codes))
  if len(item_index) != len(codes) or len(np.unique(item_index)) != len(codes):
    raise InputError(
      f"item_index must name {len(codes)} distinct items, one per new ID; got "
      f"{len(item_index)}, {len(np.unique(item_index))} of them distinct."
    )
  if item_index.min() < 0:
    raise InputError(
      f"item_index {int(item_index.min())} is negative; count items from 0."
    )
  catalog_size = max(trie.catalog_size, int(item_index.max()) + 1)
  present = np.zeros(catalog_size, bool)
  present[_order(trie)] = True
  if present[item_index].any():
    taken = int(item_index[present[item_index]][0])
    raise InputError(f"Item {taken} is in the trie already; remove it first.")

  has_end = trie.has_end or bool((codes[:, -1] < 0).any())
  shift = int(has_end) - int(trie.has_end)
  widths = [k + has_end for k in trie.codebook_sizes]
  old = [
    (column.astype(np.uint32) + shift).astype(np.min_scalar_type(width - 1))
    for column, width in zip(sorted_codes(trie), widths, strict=True)
  ]
  by_index = np.argsort(item_index)  # so that equal IDs stay in this order
  new_order, new = trie_lib.sort_rows(
    codes[by_index], trie.codebook_sizes, has_end
  )
  new_order = item_index[by_index][new_order]
  place = _insert_positions(old, _order(trie), new, new_order)
  return trie_lib.from_sorted(
    np.insert(_order(trie), place, new_order),
    [np.insert(a, place, b) for a, b in zip(old, new, strict=True)],
    trie.codebook_sizes,
    has_end,
    catalog_size,
  )


def remove_items(
  trie: trie_lib.Trie, item_index: Int[np.ndarray, "M"]
) -> trie_lib.Trie:
  """Returns a trie without some items; the old one is untouched.

  Raises:
    InputError: An item that the trie does not hold, or no item left.
  """
  order = _order(trie)
  present = np.zeros(trie.catalog_size, bool)
  present[order] = True
  outside = (item_index < 0) | (item_index >= trie.catalog_size)
  missing = outside | ~present[np.where(outside, 0, item_index)]
  if missing.any():
    raise InputError(
      f"Item {int(item_index[missing][0])} is not in the trie of "
      f"{trie.num_items} items; leave it out."
    )
  present[item_index] = False
  keep = present[order]
  if not keep.any():
    raise InputError("Removing these items leaves the trie empty; keep one.")
  return trie_lib.from_sorted(
    order[keep],
    [column[keep] for column in sorted_codes(trie)],
    trie.codebook_sizes,
    trie.has_end,
    trie.catalog_size,
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
