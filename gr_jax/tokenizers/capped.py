"""Nearest codes under a cap: a relaxed balance beside Algorithm 1's.

Every item wants its nearest cluster. A cluster holds at most `cap` items and
keeps the nearest of those that want it; who is turned away wants the nearest
of the clusters that would still have it. This is deferred acceptance with
items proposing (Gale and Shapley 1962): of all assignments in which no item
and cluster prefer each other to what they have, it is the best for every item,
and no order of clusters plays a part.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.core import nearest, row_split
from gr_jax.core.row_split import RowSplit

_NOBODY = np.int32(2**31 - 1)
_BLOCK_ELEMENTS = 1 << 22  # distances held at once


def cap_of(num_rows: int, num_codes: int, slack: float) -> int:
  """Most items of a cluster: (1 + slack) N / K, rounded up.

  >>> cap_of(10, 4, 0.0), cap_of(10, 4, 0.5)
  (3, 4)
  """
  return min(num_rows, max(1, int(np.ceil((1 + slack) * num_rows / num_codes))))


@functools.partial(jax.jit, static_argnames=("cap", "split"))
def capped_assign(
  x: Float[Array, "N D"],
  centers: Float[Array, "K D"],
  *,
  cap: int,
  split: RowSplit | None = None,
) -> Int32[Array, " N"]:
  """Gives every item the nearest cluster that has room for it.

  Args:
    x: Rows; inside `split.run`, this device's.
    centers: Centers.
    cap: Most items of a cluster, static; K of them must hold all rows.
    split: How the rows lie on several devices.

  Returns:
    The cluster of every row; -1 for those that fill up the last device.
    Clusters prefer near items, equally near ones by lowest index; items
    prefer near clusters, equally near ones by lowest number.
  """
  num_rows, num_codes = x.shape[0], centers.shape[0]
  first = 0 if split is None else lax.axis_index(split.axes) * num_rows
  index = first + jnp.arange(num_rows, dtype=jnp.int32)
  real = jnp.ones((num_rows,), bool) if split is None else split.is_row()
  everyone = row_split.gather(split, index)

  def propose(reach: jax.Array, last: jax.Array):
    """The nearest cluster that would have each row, and its distance."""

    def one_block(rows):
      x, index = rows
      distance = nearest.squared_distances(x, centers)  # [block, K]
      has_room = (distance < reach) | (
        (distance == reach) & (index[:, None] <= last)
      )
      distance = jnp.where(has_room, distance, jnp.inf)
      code = jnp.argmin(distance, axis=1).astype(jnp.int32)
      return code, jnp.min(distance, axis=1)

    size = min(num_rows, max(8, _BLOCK_ELEMENTS // num_codes))
    blocks = -(-num_rows // size)
    padding = blocks * size - num_rows
    rows = (jnp.pad(x, ((0, padding), (0, 0))), jnp.pad(index, (0, padding)))
    rows = tuple(r.reshape(blocks, size, *r.shape[1:]) for r in rows)
    code, distance = (r.reshape(-1) for r in lax.map(one_block, rows))
    return code[:num_rows], distance[:num_rows]

  def body(carry):
    _, reach, last, _ = carry
    code, distance = propose(reach[None], last[None])
    wanted = jnp.where(real, code, num_codes)  # rows of zeros want none
    columns = (
      row_split.gather(split, wanted),
      row_split.gather(split, distance),
    )
    wanted, distance, who = lax.sort((*columns, everyone), num_keys=3)
    number = jnp.arange(num_codes, dtype=jnp.int32)
    start = jnp.searchsorted(wanted, number).astype(jnp.int32)
    end = jnp.searchsorted(wanted, number, side="right").astype(jnp.int32)
    too_many = end - start > cap
    # The last that is kept: who is farther need not ask again.
    at = jnp.where(too_many, start + cap - 1, 0)
    reach = jnp.where(too_many, distance[at], reach)
    last = jnp.where(too_many, who[at], last)
    return code, reach, last, jnp.any(too_many)

  start = (
    jnp.zeros((num_rows,), jnp.int32),
    jnp.full((num_codes,), jnp.inf, jnp.float32),
    jnp.full((num_codes,), _NOBODY),
    jnp.bool_(True),
  )
  code, *_ = lax.while_loop(lambda carry: carry[3], body, start)
  return jnp.where(real, code, -1)
