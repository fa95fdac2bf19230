"""Steps in the trie: nodes -> allowed candidates -> nodes; pure, jitted.

Codes in this file are *stored* codes: with `trie.has_end` 0 means that the ID
ends and code c is c + 1, else they are the catalog's codes.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from gr_jax.decoding import trie as trie_lib


@struct.dataclass
class Children:
  """All children of some nodes, padded to the level's largest family."""

  code: jax.Array  # int32 [B, W, M], stored codes
  node: jax.Array  # int32 [B, W, M], nodes of the next depth
  exists: jax.Array  # bool [B, W, M]


def children(level: trie_lib.TrieLevel, node: Int[Array, "B W"]) -> Children:
  """Lists every node's children in ascending order of code."""
  if level.child_start is None:
    child, exists = node[..., None], jnp.ones((*node.shape, 1), bool)
  else:
    start, end = level.child_start[node], level.child_start[node + 1]
    child = (
      start[..., None]
      + jnp.arange(level.max_children, dtype=jnp.int32)[None, None]
    )  # [B, W, M]
    exists = child < end[..., None]
    child = jnp.minimum(child, level.num_children - 1)
  return Children(level.child_code[child].astype(jnp.int32), child, exists)


def allowed(
  level: trie_lib.TrieLevel, node: Int[Array, "B W"]
) -> Bool[Array, "B W K"]:
  """Returns which stored codes continue each node."""
  if level.child_bits is not None:
    return unpack_bits(level.child_bits[node])[..., : level.width]
  family = children(level, node)
  codes = jnp.arange(level.width, dtype=jnp.int32)
  hits = family.code[..., None] == codes[None, None, None]  # [B, W, M, K]
  return jnp.any(hits & family.exists[..., None], axis=2)


def allowed_log_probs(
  level: trie_lib.TrieLevel,
  node: Int[Array, "B W"],
  log_probs: Float[Array, "B W K"],
) -> Float[Array, "B W K"]:
  """Sets the log-probability of codes that continue no ID to -inf."""
  return jnp.where(allowed(level, node), log_probs, -jnp.inf)


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
  words = level.child_bits[node]  # [B, W, words]
  word, bit = code >> 5, (code & 31).astype(jnp.uint32)
  below = (jnp.uint32(1) << bit) - jnp.uint32(1)
  index = jnp.arange(words.shape[-1], dtype=jnp.int32)[None, None]
  full = jnp.uint32(0xFFFFFFFF)
  mask = jnp.where(
    index < word[..., None],
    full,
    jnp.where(index == word[..., None], below[..., None], jnp.uint32(0)),
  )
  smaller = jax.lax.population_count(words & mask).astype(jnp.int32)
  start = level.child_start[node] if level.child_start is not None else node
  own = jnp.take_along_axis(words, word[..., None], axis=-1)[..., 0]
  return start + jnp.sum(smaller, axis=-1), ((own >> bit) & 1) == 1


def unpack_bits(words: UInt32[Array, "*S G"]) -> Bool[Array, "*S K"]:
  """Expands uint32 words to bools, lowest bit first."""
  shifts = jnp.arange(32, dtype=jnp.uint32)
  shifts = shifts.reshape((1,) * words.ndim + (32,))
  bits = (words[..., None] >> shifts) & jnp.uint32(1)
  return (bits == 1).reshape(*words.shape[:-1], -1)


def leaf_item_range(
  trie: trie_lib.Trie, leaf: Int[Array, "*S"]
) -> tuple[Int[Array, "*S"], Int[Array, "*S"]]:
  """Returns where a leaf's items lie in `item_order`, and how many they are.

  A leaf of -1 (no ID) holds no items: its count is 0.
  """
  inside = leaf >= 0
  leaf = jnp.maximum(leaf, 0)
  if trie.leaf_start is None:
    start, count = leaf, jnp.ones_like(leaf)
  else:
    start = trie.leaf_start[leaf]
    count = trie.leaf_start[leaf + 1] - start
  return start, jnp.where(inside, count, 0)
