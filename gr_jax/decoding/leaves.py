"""From decoded IDs to items where several items share an ID."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from gr_jax.decoding import constraint, selection
from gr_jax.decoding import trie as trie_lib


def expand_items(
  trie: trie_lib.Trie, leaf: Int[Array, "B W"], *, num_items: int
) -> tuple[Int[Array, "B R"], Int[Array, "B R"]]:
  """Lists all items of ranked IDs, those of a better ID first.

  Args:
    trie: The catalog's IDs.
    leaf: `BeamResult.leaf`, -1 for no ID.
    num_items: R, how many items to list.

  Returns:
    item_index int32 [B, R], within an ID by item index, -1 past the end; and
    the place in `leaf` that each came from, -1 past the end.
  """
  trie = jax.tree.map(jnp.asarray, trie)
  start, count = constraint.leaf_item_range(trie, leaf)
  end = jnp.cumsum(count, axis=1)  # [B, W]
  slot = jnp.arange(num_items, dtype=jnp.int32)
  place = jnp.sum(
    end[:, :, None] <= slot[None, None], axis=1, dtype=jnp.int32
  )  # [B, R]
  exists = place < leaf.shape[1]
  place = jnp.minimum(place, leaf.shape[1] - 1)
  offset = slot[None] - selection.take(end - count, place)
  position = jnp.where(exists, selection.take(start, place) + offset, 0)
  item = constraint.item_at(trie, position)
  return jnp.where(exists, item, -1), jnp.where(exists, place, -1)


def sample_items(
  trie: trie_lib.Trie, leaf: Int[Array, "B W"], *, key: Key[Array, ""]
) -> Int[Array, "B W"]:
  """Draws one item of each ID, all equally likely; -1 for no ID."""
  trie = jax.tree.map(jnp.asarray, trie)
  start, count = constraint.leaf_item_range(trie, leaf)
  offset = jax.random.randint(
    key, leaf.shape, 0, jnp.maximum(count, 1), jnp.int32
  )
  item = constraint.item_at(trie, start + offset)
  return jnp.where(count > 0, item, -1)
