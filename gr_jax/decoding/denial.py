"""Items that a request must not get: already bought, out of stock, unsuited.

The items below any prefix are a contiguous range of the sorted catalog, so a
prefix is dead for a request exactly when the request denies as many items of
its range as the range holds. Dead children are taken out of the candidates at
every level: the beam never spends a place on them, and a request that denies
R items still gets the best W of the others. Nothing is rebuilt.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from gr_jax.decoding import constraint
from gr_jax.decoding import trie as trie_lib


@struct.dataclass
class DeadChildren:
  """Children of one level that hold no item a request may get."""

  node: jax.Array  # int32 [B, R], of the depth above
  code: jax.Array  # int32 [B, R], stored code
  child: jax.Array  # int32 [B, R], -1 where alive


def positions(
  trie: trie_lib.Trie, denied_items: Int[Array, "B R"]
) -> Int[Array, "B R"]:
  """Returns denied items' places in the sorted catalog, ascending.

  Args:
    trie: The catalog's IDs, as device arrays.
    denied_items: Item indices; -1 fills a row, repeats are allowed.

  Returns:
    int32 [B, R]; N fills what is no item or a repeat.
  """
  num_items = trie.num_items
  place = trie.item_position.at[denied_items].get(mode="clip")
  place = jnp.sort(jnp.where(denied_items >= 0, place, num_items), axis=1)
  is_repeat = jnp.pad(place[:, 1:] == place[:, :-1], ((0, 0), (1, 0)))
  return jnp.sort(jnp.where(is_repeat, num_items, place), axis=1)


def dead_children(
  level: trie_lib.TrieLevel,
  node: Int[Array, "B R"],
  place: Int[Array, "B R"],
  num_items: int,
) -> tuple[DeadChildren, Int[Array, "B R"]]:
  """Finds the children of a level that are dead for each request.

  Args:
    level: The level.
    node: Node of the depth above that holds each denied item.
    place: From `positions`.
    num_items: N.

  Returns:
    The dead children, and the child that holds each denied item: `node` of
    the next level.
  """
  inside = place < num_items
  place = jnp.minimum(place, num_items - 1)
  if level.item_start is None:
    child, held = place, jnp.ones_like(place)
  else:
    child = jnp.searchsorted(level.item_start, place, side="right") - 1
    child = child.astype(jnp.int32)
    held = level.item_start[child + 1] - level.item_start[child]
  together = (child[:, :, None] == child[:, None, :]) & inside[:, None, :]
  denied = jnp.sum(together, axis=2, dtype=jnp.int32)  # [B, R]
  dead = DeadChildren(
    node=node,
    code=level.child_code[child].astype(jnp.int32),
    child=jnp.where(inside & (denied == held), child, -1),
  )
  return dead, child


def alive_children(
  dead: DeadChildren, family: constraint.Children
) -> Bool[Array, "B W M"]:
  """Returns which listed children exist and are not dead."""
  same = family.node[..., None] == dead.child[:, None, None, :]
  return family.exists & ~jnp.any(same, axis=-1)


def alive_codes(
  dead: DeadChildren,
  node: Int[Array, "B W"],
  allowed: Bool[Array, "B W K"],
) -> Bool[Array, "B W K"]:
  """Returns which allowed codes of each node lead to a child not dead."""
  here = (node[:, :, None] == dead.node[:, None, :]) & (
    dead.child[:, None, :] >= 0
  )  # [B, W, R]
  codes = jnp.arange(allowed.shape[-1], dtype=jnp.int32)
  is_code = dead.code[:, :, None] == codes[None, None, :]  # [B, R, K]
  # Small whole numbers: any matmul precision counts them exactly.
  hits = jnp.einsum(
    "bwr,brk->bwk", here.astype(jnp.float32), is_code.astype(jnp.float32)
  )
  return allowed & (hits < 0.5)


def first_alive(
  place: Int[Array, "B R"], start: Int[Array, "B W"]
) -> Int[Array, "B W"]:
  """Returns the first place from `start` on that is not denied.

  Args:
    place: From `positions`: ascending.
    start: First place of a leaf that holds an item that is not denied.
  """

  def step(r, current):
    return current + (current == place[:, r][:, None]).astype(jnp.int32)

  return jax.lax.fori_loop(0, place.shape[1], step, start)
