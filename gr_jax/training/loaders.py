"""Where a training run's batches come from: the device, or the host.

A loader hands the jitted steps what they train on. From device memory that
is all data, of which every step cuts its own batch; from the host it is the
next steps' batches, gathered while the device works on the ones before.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from gr_jax.core import checks, rng
from gr_jax.core import mesh as mesh_lib
from gr_jax.data import splits
from gr_jax.data.interactions import Interactions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import packing, windows
from gr_jax.training import step as step_lib
from gr_jax.training import stream

LOADERS = ("device", "grain", "seqio")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """Examples from the shortest to the longest, and how batches hold them."""

  data: windows.TrainingData
  strata: packing.Strata
  plan: packing.PackPlan | None


def prepare(
  data: windows.TrainingData,
  layout: windows.WindowLayout,
  mesh: Mesh,
  *,
  batch_size: int,
  packs: bool = True,
) -> Prepared:
  """Sorts examples by length and plans the batches.

  Args:
    data: The examples, in any order; NumPy or device arrays.
    layout: How they become tokens.
    mesh: The devices; its data axis divides the rows of a batch.
    batch_size: Examples an update of one replica.
    packs: Whether several examples may share a row.

  Raises:
    InputError: No examples, or the data axis does not divide the batch.
  """
  mesh_lib.check_batch(mesh, batch_size)
  lengths = packing.example_lengths(data, layout)
  if not lengths.size:
    raise checks.InputError(
      "No training examples: every user has too few items before the last two."
    )
  strata = packing.Strata.create(lengths.size, batch_size)
  plan = None
  if packs:
    plan = packing.make_plan(
      np.sort(lengths),
      layout,
      strata=strata,
      batch_size=batch_size,
      row_multiple=mesh_lib.row_parts(mesh),
    )
  return Prepared(packing.sort_examples(data, lengths), strata, plan)


class DeviceLoader:
  """All data in device memory; every step cuts its own batch."""

  def __init__(
    self,
    data: windows.TrainingData,
    layout: windows.WindowLayout,
    mesh: Mesh,
    *,
    batch_size: int,
    packs: bool = True,
    neighbor_share: float = 0.0,
    history_cut_rate: float = 0.0,
  ):
    """Sorts and places the data and plans the batches.

    Args:
      data: The examples, in any order.
      layout: How they become tokens.
      mesh: The devices.
      batch_size: Examples an update of one replica.
      packs: Whether several examples may share a row.
      neighbor_share: Targets drawn from `data.neighbors`.
      history_cut_rate: Probability that an item of a packed example begins a
        history of its own.

    Raises:
      InputError: As `prepare`.
    """
    found = prepare(data, layout, mesh, batch_size=batch_size, packs=packs)
    self.plan = found.plan
    self.sampler = step_lib.DeviceSampler(
      layout,
      found.strata,
      found.plan,
      batch_size,
      neighbor_share,
      history_cut_rate,
    )
    self.data = mesh_lib.place(found.data, mesh_lib.replicated(mesh))

  def next(self) -> windows.TrainingData:
    """Returns all data."""
    return self.data

  def prefetch(self) -> None:
    """Does nothing: everything is there."""

  def state(self) -> None:
    """Returns nothing: a batch follows from the step alone."""

  def restore(self, state: Any) -> None:
    """Does nothing."""


class HostLoader:
  """Batches of one stream a replica, for several steps at once."""

  sampler = None

  def __init__(
    self,
    streams: Sequence[stream.Stream],
    mesh: Mesh,
    *,
    num_steps: int,
    plan: packing.PackPlan | None,
  ):
    """Holds the streams.

    Args:
      streams: One a replica, of this process's rows.
      mesh: The devices; rows are split over its data axis.
      num_steps: Updates a call of the jitted steps.
      plan: How batches are packed; None for not at all.
    """
    self._streams = streams
    self._num_steps = num_steps
    self._sharding = mesh_lib.batch_sharding(mesh, axis=2)
    self.plan = plan
    self._state = self._position()
    self._ready: tuple[windows.Batch, list[stream.State]] | None = None

  def next(self) -> windows.Batch:
    """Returns the next steps' batches, leaves [num_steps, R, rows, ...]."""
    self.prefetch()
    batches, self._state = self._ready
    self._ready = None
    return batches

  def prefetch(self) -> None:
    """Makes what `next` will return, while the device works."""
    if self._ready is not None:
      return
    steps = [
      [next(each) for each in self._streams] for _ in range(self._num_steps)
    ]
    rows = [
      jax.tree.map(lambda *x: np.stack(x), *replicas) for replicas in steps
    ]
    host = jax.tree.map(lambda *x: np.stack(x), *rows)
    placed = jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(self._sharding, x), host
    )
    self._ready = placed, self._position()

  def state(self) -> list[stream.State]:
    """Returns the streams' positions after what `next` returned last."""
    return self._state

  def restore(self, state: Sequence[stream.State]) -> None:
    """Goes to positions that `state` returned.

    Raises:
      InputError: They are of streams over other data or batches.
    """
    for each, position in zip(self._streams, state, strict=True):
      each.restore(position)
    self._state, self._ready = self._position(), None

  def _position(self) -> list[stream.State]:
    return [each.state() for each in self._streams]


Loader = DeviceLoader | HostLoader


def host_shard(mesh: Mesh, batch_size: int) -> stream.HostShard:
  """Returns this process's part of every batch.

  Raises:
    InputError: The processes do not divide the data axis or the batch.
  """
  count = jax.process_count()
  if mesh_lib.row_parts(mesh) % count:
    raise checks.InputError(
      f"Batches from the host need mesh data={mesh_lib.row_parts(mesh)} to be "
      f"a multiple of the {count} processes; use data.loader='device'."
    )
  return stream.HostShard(batch_size, jax.process_index(), count)


def grain_loader(
  interactions: Interactions,
  catalog: SidCatalog,
  vocabulary: SidVocabulary,
  examples: splits.Examples,
  layout: windows.WindowLayout,
  mesh: Mesh,
  *,
  keys: jax.Array,
  batch_size: int,
  num_steps: int,
  packs: bool = True,
) -> HostLoader:
  """Returns the device loader's batches, gathered from host memory by grain.

  Args:
    interactions: The data.
    catalog: Its semantic IDs.
    vocabulary: Their tokens.
    examples: To train on.
    layout: How they become tokens.
    mesh: The devices.
    keys: The replicas' root keys, [R].
    batch_size: Examples an update of one replica.
    num_steps: Updates a call of the jitted steps.
    packs: Whether several examples may share a row.

  Raises:
    InputError: grain is not installed, or as `prepare` and `host_shard`.
  """
  data = stream.host_data(interactions, catalog, vocabulary, examples)
  found = prepare(data, layout, mesh, batch_size=batch_size, packs=packs)
  shard = host_shard(mesh, batch_size)
  streams = [
    stream.GrainStream(
      found.data,
      layout,
      key=rng.stream(key, "order"),
      shard=shard,
      strata=found.strata,
      plan=found.plan,
    )
    for key in keys
  ]
  return HostLoader(streams, mesh, num_steps=num_steps, plan=found.plan)


def seqio_loader(
  task: str,
  layout: windows.WindowLayout,
  mesh: Mesh,
  *,
  seeds: Sequence[int],
  batch_size: int,
  num_steps: int,
  cache_dir: str | None = None,
) -> HostLoader:
  """Returns batches of a registered seqio task, unpacked, in its own order.

  Args:
    task: Its name.
    layout: For the lengths of inputs and targets.
    mesh: The devices.
    seeds: Of the replicas' orders.
    batch_size: Examples an update of one replica.
    num_steps: Updates a call of the jitted steps.
    cache_dir: Where `launch.cache_tasks` wrote; None computes on the fly.

  Raises:
    InputError: As `stream.SeqioStream`, `host_shard`, or the data axis does
      not divide the batch.
  """
  mesh_lib.check_batch(mesh, batch_size)
  shard = host_shard(mesh, batch_size)
  streams = [
    stream.SeqioStream(
      task, layout, seed=seed, shard=shard, cache_dir=cache_dir
    )
    for seed in seeds
  ]
  return HostLoader(streams, mesh, num_steps=num_steps, plan=None)
