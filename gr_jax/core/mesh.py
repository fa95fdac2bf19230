"""The device mesh, and where arrays lie on it. Knows no model."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gr_jax.core import checks

DATA, MODEL = "data", "model"


def make_mesh(
  devices: Sequence[jax.Device], *, data: int = -1, model: int = 1
) -> Mesh:
  """Arranges devices as a grid of `data` x `model`.

  Args:
    devices: The devices to use; mains pass `jax.devices()`.
    data: How many ways batches are split; -1 takes all that are left.
    model: How many ways parameters are split.

  Raises:
    InputError: The axes do not use exactly the devices there are.
  """
  count = len(devices)
  if model < 1 or count % model:
    raise checks.InputError(
      f"mesh model={model} does not divide the {count} devices; choose a "
      "divisor."
    )
  if data == -1:
    data = count // model
  if data * model != count:
    raise checks.InputError(
      f"mesh data={data} x model={model} does not use the {count} devices; "
      "use data=-1 to take all."
    )
  return Mesh(np.asarray(devices).reshape(data, model), (DATA, MODEL))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits the first axis over `data`."""
  return NamedSharding(mesh, PartitionSpec(DATA))


def check_batch(mesh: Mesh, batch_size: int, name: str = "batch_size") -> None:
  """Refuses a batch that the data axis does not divide.

  Raises:
    InputError: The remainder is not zero.
  """
  if batch_size % mesh.shape[DATA]:
    raise checks.InputError(
      f"{name}={batch_size} is not a multiple of the {mesh.shape[DATA]} "
      "devices on the data axis."
    )
