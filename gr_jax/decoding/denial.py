"""Items that a request must not get: already bought, out of stock, unsuited.

The items below any prefix are a contiguous range of the sorted catalog, so a
prefix is dead for a request exactly when the request denies as many items of
its range as the range holds. Dead children are taken out of the candidates at
every level: the beam never spends a place on them, and a request that denies
R items still gets the best W of the others. Nothing is rebuilt.

Two forms: a short list of denied items per request, whose cost does not depend
on the catalog, and a mask over the catalog, for filters that keep or deny many.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from gr_jax.decoding import constraint, selection
from gr_jax.decoding import trie as trie_lib

# Lists up to this long are compared with every candidate, longer ones searched.
_COMPARE_ALL = 32
_NEVER = 2**31 - 1


@struct.dataclass
class DenyList:
  """Denied items on the way down the trie."""

  place: Any  # int32 [B, R], sorted positions, ascending; N fills
  node: Any  # int32 [B, R], node above the next level that holds each


@struct.dataclass
class AllowCounts:
  """A catalog mask, summed so that any range's count is one difference."""

  below: Any  # int32 [B, N + 1], allowed items at positions before each


@struct.dataclass
class DeadChildren:
  """Children of one level that hold no item a request may get."""

  node: Any  # int32 [B, R], of the depth above
  code: Any  # int32 [B, R], stored code
  child: Any  # int32 [B, R], -1 where alive; each dead child once


@struct.dataclass
class CountedChildren:
  """Tells dead children of one level by the mask's counts."""

  below: Any  # int32 [B, N + 1]
  level: trie_lib.TrieLevel


def deny_list(trie: trie_lib.Trie, denied_items: Int[Array, "B R"]) -> DenyList:
  """Places denied items in the sorted catalog.

  Args:
    trie: The catalog's IDs, as device arrays.
    denied_items: Item indices; -1 fills a row, repeats are allowed.
  """
  num_items = trie.num_items
  place = denied_items
  if trie.item_position is not None:
    place = trie.item_position.at[denied_items].get(mode="clip")
  is_item = (denied_items >= 0) & (denied_items < trie.catalog_size)
  place = jnp.where(is_item & (place >= 0), place, num_items)
  place = jnp.sort(place, axis=1)
  is_repeat = jnp.pad(place[:, 1:] == place[:, :-1], ((0, 0), (1, 0)))
  place = jnp.sort(jnp.where(is_repeat, num_items, place), axis=1)
  return DenyList(place, jnp.zeros_like(place))


def allow_counts(
  trie: trie_lib.Trie, item_mask: Bool[Array, "B N"]
) -> AllowCounts:
  """Sums a mask of items that may be returned (True), in sorted order."""
  if trie.item_order is not None:
    item_mask = item_mask[:, trie.item_order]
  below = jnp.cumsum(item_mask.astype(jnp.int32), axis=1)
  return AllowCounts(jnp.pad(below, ((0, 0), (1, 0))))


def dead_children(
  trie: trie_lib.Trie, l: int, denied: DenyList | AllowCounts
) -> tuple[DeadChildren | CountedChildren, DenyList | AllowCounts]:
  """Finds the dead children of level l.

  Returns:
    What `is_dead` and `clear_dead` take, and `denied` for level l + 1.
  """
  level = trie.levels[l]
  if isinstance(denied, AllowCounts):
    return CountedChildren(denied.below, level), denied
  place, node = denied.place, denied.node
  inside = place < trie.num_items
  place = jnp.minimum(place, trie.num_items - 1)
  child = _child_with(level, node, place)
  start = constraint.range_start(level.item_extra, child)
  held = constraint.range_start(level.item_extra, child + 1) - start
  # Places ascend without repeats, so a child is dead exactly when its first
  # position is denied and its last follows as many places later.
  index = jnp.arange(place.shape[1], dtype=jnp.int32)[None]
  last = index + held - 1
  last_place = selection.take(
    denied.place, jnp.minimum(last, place.shape[1] - 1)
  )
  is_dead_here = (
    inside
    & (place == start)
    & (last < place.shape[1])
    & (last_place == start + held - 1)
  )
  dead = DeadChildren(
    node=node,
    code=level.child_code[child].astype(jnp.int32),
    child=jnp.where(is_dead_here, child, -1),
  )
  return dead, DenyList(denied.place, child)


def is_dead(
  dead: DeadChildren | CountedChildren, child: Int[Array, "B W M"]
) -> Bool[Array, "B W M"]:
  """Returns which children hold no item that the request may get."""
  if isinstance(dead, CountedChildren):
    extra = dead.level.item_extra
    first, end = (
      constraint.range_start(extra, x).reshape(child.shape[0], -1)
      for x in (child, child + 1)
    )
    count = selection.take(dead.below, end) - selection.take(dead.below, first)
    return (count == 0).reshape(child.shape)
  num_denied = dead.child.shape[1]
  if num_denied <= _COMPARE_ALL:
    return jnp.any(child[..., None] == dead.child[:, None, None, :], axis=-1)
  ordered = jnp.sort(jnp.where(dead.child < 0, _NEVER, dead.child), axis=1)
  flat = child.reshape(child.shape[0], -1)
  # Binary search for the last entry <= child, unrolled to stay one kernel.
  low = jnp.zeros_like(flat)
  for step in _steps(num_denied):
    probe = jnp.minimum(low + step, num_denied - 1)
    low = jnp.where(selection.take(ordered, probe) <= flat, probe, low)
  return (selection.take(ordered, low) == flat).reshape(child.shape)


def clear_dead(
  dead: DeadChildren | CountedChildren,
  node: Int[Array, "B W"],
  score: Float[Array, "B W"],
  words: UInt32[Array, "B W G"],
) -> UInt32[Array, "B W G"]:
  """Clears the bits of codes that lead to dead children.

  Args:
    dead: From `dead_children`.
    node: Nodes of the beams, distinct where `score` is finite; -1 for beams
      outside the trie.
    score: Scores of the beams; -inf marks empty places.
    words: Bits of the codes that a beam may take, all children among them.
  """
  if isinstance(dead, CountedChildren):
    level, inside = dead.level, node >= 0
    node = jnp.maximum(node, 0)
    own = constraint.allowed_words(level, node)
    start = constraint.range_start(level.child_extra, node)
    counts = jax.lax.population_count(own).astype(jnp.int32)
    before = jnp.cumsum(counts, axis=-1) - counts  # [B, W, G]
    bit = jnp.arange(32, dtype=jnp.uint32)[None, None, None]
    lower = own[..., None] & ((jnp.uint32(1) << bit) - jnp.uint32(1))
    rank = before[..., None] + jax.lax.population_count(lower).astype(jnp.int32)
    child = start[..., None] + rank.reshape(*node.shape, -1)  # [B, W, G * 32]
    child = jnp.minimum(child, level.num_children - 1)
    gone = is_dead(dead, child).reshape(rank.shape) & inside[..., None, None]
    gone = jnp.sum(gone.astype(jnp.uint32) << bit, axis=-1, dtype=jnp.uint32)
    return words & ~(gone & own)
  live = jnp.where(score > -jnp.inf, node, -1)
  index = jnp.arange(node.shape[1], dtype=jnp.int32)[None, None]
  here = (dead.node[:, :, None] == live[:, None, :]) & (
    dead.child[:, :, None] >= 0
  )  # [B, R, W], one beam at most
  beam = jnp.sum(jnp.where(here, index, 0), axis=-1, dtype=jnp.int32)
  bit = jnp.uint32(1) << (dead.code & 31).astype(jnp.uint32)
  bit = jnp.where(jnp.any(here, axis=-1), bit, jnp.uint32(0))
  row = jnp.arange(node.shape[0], dtype=jnp.int32)[:, None]
  # Each dead code once, and its bit is set: subtracting clears it.
  return words.at[row, beam, dead.code >> 5].add(-bit)


def first_alive(
  denied: DenyList | AllowCounts, start: Int[Array, "B W"]
) -> Int[Array, "B W"]:
  """Returns the first position from `start` on that is not denied.

  Args:
    denied: From `deny_list` or `allow_counts`.
    start: First position of a leaf that holds an item that is not denied.
  """
  if isinstance(denied, AllowCounts):
    num_items = denied.below.shape[1] - 1
    index = jnp.arange(num_items, dtype=jnp.int32)[None]
    is_allowed = denied.below[:, 1:] > denied.below[:, :-1]
    following = jax.lax.cummin(
      jnp.where(is_allowed, index, num_items - 1), axis=1, reverse=True
    )
    return selection.take(following, start)
  place = denied.place[:, None, :]
  index = jnp.arange(place.shape[2], dtype=jnp.int32)[None, None]
  before = jnp.sum(place < start[..., None], axis=-1, dtype=jnp.int32)
  # place - index never falls; it equals start - before along the run of
  # denied positions that begins at start.
  level = (start - before)[..., None]
  upto = (place - index <= level) & (index < _count_real(denied)[:, None, None])
  run = jnp.sum(upto, axis=-1, dtype=jnp.int32) - before
  return start + run


def _count_real(denied):
  """Entries that are no filling: those that ascend."""
  place = denied.place
  rises = jnp.pad(
    place[:, 1:] > place[:, :-1], ((0, 0), (1, 0)), constant_values=True
  )
  return jnp.sum(rises, axis=1, dtype=jnp.int32)


def _child_with(level, node, place):
  """Returns the child of `node` whose items hold position `place`."""
  low = constraint.range_start(level.child_extra, node)
  if level.max_children == 1:
    return low
  last = constraint.range_start(level.child_extra, node + 1) - 1
  for step in _steps(level.max_children):
    probe = jnp.minimum(low + step, last)
    begins = constraint.range_start(level.item_extra, probe) <= place
    low = jnp.where(begins, probe, low)
  return low


def _steps(size):
  """Powers of two that a search over `size` entries takes, largest first."""
  return [1 << b for b in range((size - 1).bit_length() - 1, -1, -1)]
