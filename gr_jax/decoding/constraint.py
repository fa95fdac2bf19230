"""Steps in the trie: nodes -> allowed candidates -> nodes; pure, jitted.

Codes in this file are *stored* codes: with `trie.has_end` 0 means that the ID
ends and code c is c + 1, else they are the catalog's codes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from gr_jax.decoding import trie as trie_lib


@struct.dataclass
class Children:
  """All children of some nodes, padded to the level's largest family."""

  code: Any  # int32 [B, W, M], stored codes
  node: Any  # int32 [B, W, M], nodes of the next depth
  exists: Any  # bool [B, W, M]


def range_start(extra: Any, index: Int[Array, "*S"]) -> Int[Array, "*S"]:
  """Returns where the range of a node starts; see `trie.TrieLevel`."""
  if extra is None:
    return index
  return index + extra[index].astype(jnp.int32)


def children(level: trie_lib.TrieLevel, node: Int[Array, "B W"]) -> Children:
  """Lists every node's children in ascending order of code."""
  start = range_start(level.child_extra, node)
  if level.max_children == 1:
    child, exists = start[..., None], jnp.ones((*node.shape, 1), bool)
  else:
    end = range_start(level.child_extra, node + 1)
    place = jnp.arange(level.max_children, dtype=jnp.int32)[None, None]
    child = start[..., None] + place  # [B, W, M]
    exists = child < end[..., None]
    child = jnp.minimum(child, level.num_children - 1)
  return Children(level.child_code[child].astype(jnp.int32), child, exists)


def parent(
  level: trie_lib.TrieLevel, child: Int[Array, "*S"]
) -> Int[Array, "*S"]:
  """Returns the node of the depth above that each child hangs from."""
  if level.child_extra is None:
    return child
  index = jnp.arange(level.num_nodes + 1, dtype=jnp.int32)
  start = range_start(level.child_extra, index)
  found = jnp.searchsorted(start, child, side="right")
  return found.astype(jnp.int32) - 1


def allowed_words(
  level: trie_lib.TrieLevel, node: Int[Array, "B W"]
) -> UInt32[Array, "B W G"]:
  """Returns the codes that continue each node, one bit each, 32 a word."""
  if level.child_bits is not None:
    return level.child_bits[node]
  family = children(level, node)
  words = jnp.zeros((*node.shape, -(-level.width // 32)), jnp.uint32)
  b = jnp.arange(node.shape[0])[:, None, None]
  w = jnp.arange(node.shape[1])[None, :, None]
  bit = jnp.uint32(1) << (family.code & 31).astype(jnp.uint32)
  bit = jnp.where(family.exists, bit, jnp.uint32(0))
  return words.at[b, w, family.code >> 5].add(bit)


def allowed_log_probs(
  level: trie_lib.TrieLevel,
  node: Int[Array, "B W"],
  log_probs: Float[Array, "B W K"],
) -> Float[Array, "B W K"]:
  """Sets the log-probability of codes that continue no ID to -inf.

  The plain form of what the search does inside its selection, for decoding
  loops of others.
  """
  allowed = unpack_bits(allowed_words(level, node))[..., : level.width]
  return jnp.where(allowed, log_probs, -jnp.inf)


def child_node(
  level: trie_lib.TrieLevel, node: Int[Array, "B W"], code: Int[Array, "B W"]
) -> Int[Array, "B W"]:
  """Returns the node reached by a stored code, -1 where there is none.

  A node of -1 stays -1, so a free beam that left the trie never returns.
  """
  inside = node >= 0
  node = jnp.maximum(node, 0)
  if level.child_bits is not None:
    child, hit = _rank(level, node, code)
  else:
    family = children(level, node)
    match = (family.code == code[..., None]) & family.exists
    hit = jnp.any(match, axis=-1)
    child = jnp.sum(jnp.where(match, family.node, 0), axis=-1)
  return jnp.where(inside & hit, child, -1)


def _rank(level, node, code):
  """Child = first child + number of siblings with a smaller code."""
  words = level.child_bits[node]  # [B, W, G]
  word, bit = code >> 5, (code & 31).astype(jnp.uint32)
  below = (jnp.uint32(1) << bit) - jnp.uint32(1)
  index = jnp.arange(words.shape[-1], dtype=jnp.int32)[None, None]
  mask = jnp.where(
    index < word[..., None],
    jnp.uint32(0xFFFFFFFF),
    jnp.where(index == word[..., None], below[..., None], jnp.uint32(0)),
  )
  smaller = jax.lax.population_count(words & mask).astype(jnp.int32)
  own = jnp.where(index == word[..., None], (words >> bit[..., None]) & 1, 0)
  start = range_start(level.child_extra, node)
  return start + jnp.sum(smaller, axis=-1), jnp.sum(own, axis=-1) == 1


def unpack_bits(words: UInt32[Array, "*S G"]) -> Bool[Array, "*S K"]:
  """Expands uint32 words to bools, lowest bit first."""
  shifts = jnp.arange(32, dtype=jnp.uint32)
  shifts = shifts.reshape((1,) * words.ndim + (32,))
  bits = (words[..., None] >> shifts) & jnp.uint32(1)
  return (bits == 1).reshape(*words.shape[:-1], -1)


def leaf_item_range(
  trie: trie_lib.Trie, leaf: Int[Array, "*S"]
) -> tuple[Int[Array, "*S"], Int[Array, "*S"]]:
  """Returns a leaf's first sorted position and its number of items.

  `item_at` turns positions start, start + 1, ... into items. A leaf of -1 (no
  ID) holds no items: its count is 0.
  """
  inside = leaf >= 0
  leaf = jnp.maximum(leaf, 0)
  extra = trie.levels[-1].item_extra
  start = range_start(extra, leaf)
  count = range_start(extra, leaf + 1) - start
  return start, jnp.where(inside, count, 0)


def item_at(
  trie: trie_lib.Trie, position: Int[Array, "*S"]
) -> Int[Array, "*S"]:
  """Returns the item index at each position of the sorted catalog."""
  return position if trie.item_order is None else trie.item_order[position]
