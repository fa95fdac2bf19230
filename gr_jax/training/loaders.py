"""Where a training run's batches come from."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from gr_jax.core import mesh as mesh_lib
from gr_jax.tasks import packing, windows
from gr_jax.training import step as step_lib


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceLoader:
  """All data in device memory; every step cuts its own batch.

  Attributes:
    sampler: What cuts the batches.
    data: On every device, examples sorted by length.
  """

  sampler: step_lib.DeviceSampler
  data: windows.TrainingData

  @classmethod
  def create(
    cls,
    data: windows.TrainingData,
    layout: windows.WindowLayout,
    mesh: Mesh,
    *,
    batch_size: int,
  ) -> "DeviceLoader":
    """Sorts and places the data and plans the batches.

    Args:
      data: The examples, in any order.
      layout: How they become tokens.
      mesh: The devices.
      batch_size: Examples an update of one replica.

    Raises:
      InputError: The data axis does not divide the batch.
    """
    mesh_lib.check_batch(mesh, batch_size)
    lengths = packing.example_lengths(data, layout)
    strata = packing.Strata.create(lengths.size, batch_size)
    sampler = step_lib.DeviceSampler(
      layout,
      strata,
      packing.make_plan(
        np.sort(lengths),
        layout,
        strata=strata,
        batch_size=batch_size,
        row_multiple=mesh.shape[mesh_lib.DATA],
      ),
      batch_size,
    )
    data = packing.sort_examples(data, lengths)
    return cls(sampler, mesh_lib.place(data, mesh_lib.replicated(mesh)))
