"""The device mesh, and where arrays lie on it. Knows no model."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gr_jax.core import checks

DATA, MODEL, REPLICA = "data", "model", "replica"


def make_mesh(
  devices: Sequence[jax.Device],
  *,
  data: int = -1,
  model: int = 1,
  replica: int = 1,
) -> Mesh:
  """Arranges devices as a grid of `data` x `model`, or of several such.

  Args:
    devices: The devices to use; mains pass `jax.devices()`.
    data: How many ways batches are split; -1 takes all that are left.
    model: How many ways parameters are split.
    replica: How many groups of devices split batches further while each holds
      all parameters; the mesh has the axis `replica`, outermost, if this is
      not 1. FSDP then gathers inside a group, and gradients alone are summed
      over all.

  Raises:
    InputError: The axes do not use exactly the devices there are.
  """
  count = len(devices)
  for name, size in ((MODEL, model), (REPLICA, replica)):
    if size < 1 or count % size:
      raise checks.InputError(
        f"mesh {name}={size} does not divide the {count} devices; choose a "
        "divisor."
      )
  if data == -1:
    data = count // (model * replica)
  if data * model * replica != count:
    groups = f" x replica={replica}" if replica > 1 else ""
    raise checks.InputError(
      f"mesh data={data} x model={model}{groups} does not use the {count} "
      "devices; use data=-1 to take all."
    )
  # On a TPU the grid follows the wires; elsewhere it is the order given, so
  # that the model axis stays inside a host as long as it fits.
  shape, names = (data, model), (DATA, MODEL)
  if replica > 1:
    shape, names = (replica, *shape), (REPLICA, *names)
  return Mesh(
    mesh_utils.create_device_mesh(shape, devices=list(devices)), names
  )


def row_axes(mesh: Mesh) -> str | tuple[str, ...]:
  """Returns the axes that rows (of batches, items, users) are split over."""
  return (REPLICA, DATA) if REPLICA in mesh.axis_names else DATA


def row_parts(mesh: Mesh) -> int:
  """Returns how many ways rows are split."""
  return mesh.shape[DATA] * mesh.shape.get(REPLICA, 1)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Returns the sharding that splits the rows of one axis, the first."""
  return NamedSharding(mesh, PartitionSpec(*[None] * axis, row_axes(mesh)))


def check_batch(mesh: Mesh, batch_size: int, name: str = "batch_size") -> None:
  """Refuses a batch that the data axis does not divide.

  Raises:
    InputError: The remainder is not zero.
  """
  if batch_size % row_parts(mesh):
    raise checks.InputError(
      f"{name}={batch_size} is not a multiple of the {row_parts(mesh)} "
      "devices on the data axis."
    )


def shard_by_rules(
  mesh: Mesh,
  axes: PartitionSpec,
  shape: Sequence[int],
  rules: Mapping[str, str | None],
  name: str,
) -> NamedSharding:
  """Returns where an array lies whose axes have logical names.

  >>> mesh = make_mesh(jax.devices()[:1])
  >>> axes = PartitionSpec("embed", "mlp")
  >>> shard_by_rules(mesh, axes, (8, 16), {"mlp": "model"}, "wi").spec
  PartitionSpec(None, 'model')

  Args:
    mesh: The devices.
    axes: A logical name for every axis.
    shape: The array's.
    rules: Logical names to mesh axes; a name that is missing, or maps to
      None, is not split.
    name: The array's, for messages.

  Raises:
    InputError: A rule names no mesh axis, an axis's size is no multiple of
      its mesh axis, or two axes would lie on one mesh axis.
  """
  spec = [rules.get(axis) for axis in axes]
  for axis, size, target in zip(axes, shape, spec, strict=True):
    if target is None:
      continue
    checks.check_known(target, mesh.shape, f"mesh axis in rule {axis!r}:")
    if size % mesh.shape[target]:
      raise checks.InputError(
        f"Axis {axis}={size} of parameter {name} is not a multiple of mesh "
        f"{target}={mesh.shape[target]}; change the size or mesh.rules."
      )
  used = [target for target in spec if target is not None]
  if len(set(used)) < len(used):
    raise checks.InputError(
      f"The rules put two axes {tuple(axes)} of parameter {name} on one mesh "
      f"axis: {tuple(spec)}."
    )
  return NamedSharding(mesh, PartitionSpec(*spec))


def without_data(sharding: NamedSharding) -> NamedSharding:
  """Returns the sharding with nothing split over `data`.

  Where parameters lie while they are used: an FSDP shard is gathered, a
  tensor-parallel one stays.
  """
  spec = (None if axis == DATA else axis for axis in sharding.spec)
  return NamedSharding(sharding.mesh, PartitionSpec(*spec))


def place(tree: Any, sharding: NamedSharding) -> Any:
  """Puts arrays that every process holds whole on the mesh.

  Args:
    tree: Numeric arrays, the same on every process.
    sharding: Where they shall lie.
  """
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)

  def put(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  return jax.tree.map(put, tree)


def use_on(mesh: Mesh, params: Any) -> Any:
  """Returns parameters as they lie while they are used on a mesh.

  Parameters that lie on the mesh are gathered over `data`; others are
  copied to every device.
  """

  def lies_here(x):
    sharding = getattr(x, "sharding", None)
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh

  if not all(map(lies_here, jax.tree.leaves(params))):
    return place(params, replicated(mesh))
  wanted = jax.tree.map(lambda x: without_data(x.sharding), params)
  return jax.jit(lambda p: p, out_shardings=wanted)(params)


def to_host(tree: Any) -> Any:
  """Returns whole arrays as numpy, on every process.

  Every process must call it: shards on other hosts are gathered.
  """

  def spans_hosts(x):
    return isinstance(x, jax.Array) and not (
      x.is_fully_addressable or x.is_fully_replicated
    )

  leaves, treedef = jax.tree.flatten(tree)
  far = [x for x in leaves if spans_hosts(x)]
  if far:
    gather = jax.jit(
      lambda xs: xs, out_shardings=replicated(far[0].sharding.mesh)
    )
    gathered = iter(gather(far))
    leaves = [next(gathered) if spans_hosts(x) else x for x in leaves]
  return jax.tree.unflatten(treedef, jax.device_get(leaves))
