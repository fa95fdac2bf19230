"""Rows of a matrix split over a mesh's devices: fits on all of them.

Each device holds a part of the rows and runs the same code as one device
does on all of them; what it needs of the others is summed over them
(`total`) or gathered (`gather`). Parts are equal in size, so the last ones may
end in rows of zeros, which `is_row` tells apart.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Int, Shaped

from gr_jax.core import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class RowSplit:
  """How N rows lie on a mesh; static and hashable.

  Attributes:
    mesh: The devices; its model axis holds copies.
    num_rows: N.
  """

  mesh: Mesh
  num_rows: int

  @property
  def part_size(self) -> int:
    """Rows of each part, those of zeros included."""
    return -(-self.num_rows // mesh_lib.row_parts(self.mesh))

  @property
  def axes(self) -> str | tuple[str, ...]:
    """The mesh axes that parts lie along; inside `run`."""
    return mesh_lib.row_axes(self.mesh)

  def place(self, x: Shaped[Array | np.ndarray, "N D"]) -> Shaped[Array, "M D"]:
    """Puts the rows on the mesh; each process reads the parts it holds.

    Args:
      x: All rows, e.g. a memory map.

    Returns:
      The rows and, behind them, the zeros that fill the parts up.
    """
    num_parts = mesh_lib.row_parts(self.mesh)

    def part(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[0].indices(num_parts * self.part_size)
      rows = np.asarray(x[min(start, self.num_rows) : stop])
      return np.pad(rows, ((0, stop - start - len(rows)), (0, 0)))

    return jax.make_array_from_callback(
      (num_parts * self.part_size, x.shape[1]),
      mesh_lib.batch_sharding(self.mesh),
      part,
    )

  def copy(self, tree: Any) -> Any:
    """Puts arrays and keys whole on every device, those that are not yet."""
    where = mesh_lib.replicated(self.mesh)

    def put(x):
      if isinstance(x, jax.Array) and x.sharding == where:
        return x
      if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
      return mesh_lib.place(np.asarray(x), where)

    return jax.tree.map(put, tree)

  def whole(self, tree: Any) -> Any:
    """Returns arrays that all devices hold whole on the default device."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), tree)

  def take(
    self, x: Shaped[Array, "M D"], index: Int[Array, "n"]
  ) -> Shaped[np.ndarray, "n D"]:
    """Returns some rows on the host, the same on every process."""
    take = jax.jit(
      lambda x, index: x[index], out_shardings=mesh_lib.replicated(self.mesh)
    )
    return np.asarray(take(x, self.copy(index)))

  def to_host(self, x: Array) -> np.ndarray:
    """Returns an array of all rows without the zeros that fill it up."""
    return mesh_lib.to_host(x)[: self.num_rows]

  def run(
    self, function: Callable[..., Any], *, takes_rows: tuple[bool, ...],
    gives_rows: Any = False,
  ) -> Callable[..., Any]:  # fmt: skip
    """Maps a function over the parts.

    Args:
      function: Called once a device.
      takes_rows: For each argument, whether a device gets its part of the
        rows, or the whole.
      gives_rows: The same for the result: a bool, or a tree for a tree.
    """

    def spec(of_rows: bool) -> PartitionSpec:
      return PartitionSpec(self.axes) if of_rows else PartitionSpec()

    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=tuple(map(spec, takes_rows)),
      out_specs=jax.tree.map(spec, gives_rows),
      # The loops' carries start as constants, which the check would refuse.
      check_vma=False,
    )

  def is_row(self) -> Bool[Array, "n"]:
    """Tells rows from zeros; inside `run`."""
    start = lax.axis_index(self.axes) * self.part_size
    return start + jnp.arange(self.part_size) < self.num_rows


def total(split: RowSplit | None, tree: Any) -> Any:
  """Sums over the parts; inside `run`, or without a split the tree itself."""
  return tree if split is None else lax.psum(tree, split.axes)


def gather(split: RowSplit | None, x: Array) -> Array:
  """Joins the parts' first axes in order; inside `run`, or x itself."""
  if split is None:
    return x
  return lax.all_gather(x, split.axes, tiled=True)
