"""Training batches made on the host, for data that the device cannot hold.

Three loaders yield the same examples. The device sampler
(`training.step`) needs everything in device memory and is the fastest.
`GrainStream` gathers the very same batches in the very same order from host
arrays, which may be memory-mapped files. `SeqioStream` reads a seqio task or
mixture, in an order of its own.

A stream's position is its number of batches, so its state is a few integers
and a restored stream goes on as if it had never stopped.
"""

import dataclasses
import functools
import glob
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, Int32

from gr_jax.core import checks, permutation
from gr_jax.data import splits
from gr_jax.data.interactions import Interactions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import EOS_ID, PAD_ID, SidVocabulary
from gr_jax.tasks import packing, windows

_MAX_EXAMPLES = 1 << 32  # of a whole run: positions are counted in 32 bits
State = dict[str, int]


def host_data(
  interactions: Interactions,
  catalog: SidCatalog,
  vocabulary: SidVocabulary,
  examples: splits.Examples,
) -> windows.TrainingData:
  """Returns `windows.training_data` as NumPy arrays, on no device.

  Raises:
    InputError: Interactions name an item that the catalog lacks.
  """
  interactions.check_items(catalog.num_items)
  return windows.TrainingData(
    items=interactions.items,
    item_tokens=np.asarray(vocabulary.tokens_from_codes(catalog.codes)),
    user_tokens=vocabulary.user_tokens(interactions.user_ids),
    user_index=examples.user_index,
    history_start=examples.history_start,
    target_position=examples.target_position,
  )


def gather_numpy(
  data: windows.TrainingData,
  example_index: Int[np.ndarray, "B"],
  layout: windows.WindowLayout,
) -> windows.Batch:
  """Cuts the same batch as `windows.gather_batch`, in NumPy.

  Args:
    data: NumPy arrays, memory-mapped ones included.
    example_index: Which examples, each in 0..M-1.
    layout: How examples become tokens.

  Returns:
    int32 arrays `inputs` [B, S] and `targets` [B, T].
  """
  target = data.target_position[example_index]  # [B]
  start = np.maximum(
    data.history_start[example_index], target - layout.max_history
  )
  slots = np.arange(layout.max_history, dtype=np.int32)
  is_item = slots[None] < (target - start)[:, None]  # [B, H]
  places = np.where(is_item, start[:, None] + slots[None], 0)
  tokens = data.item_tokens[data.items[places]]  # [B, H, L]
  tokens = np.where(is_item[:, :, None], tokens, np.int32(PAD_ID))
  flat = tokens.reshape(len(tokens), -1)  # [B, H * L]
  first = int(layout.has_user_token)
  inputs = np.zeros((len(flat), layout.input_length), np.int32)
  if layout.is_variable_length:
    # All tokens move to the front, in their order.
    rows, columns = np.nonzero(flat)
    count = np.count_nonzero(flat, axis=1)  # [B]
    begin = np.repeat(np.cumsum(count) - count, count)
    inputs[rows, first + np.arange(rows.size) - begin] = flat[rows, columns]
  else:
    inputs[:, first : first + flat.shape[1]] = flat
    count = np.count_nonzero(flat, axis=1)
  if layout.has_user_token:
    inputs[:, 0] = data.user_tokens[data.user_index[example_index]]
  everyone = np.arange(len(flat))
  inputs[everyone, first + count] = EOS_ID

  if layout.every_item:
    following = data.item_tokens[data.items[np.where(is_item, places + 1, 0)]]
    following = np.where(is_item[:, :, None], following, np.int32(PAD_ID))
    return windows.Batch(
      inputs=inputs, targets=following.reshape(len(flat), -1)
    )
  next_tokens = data.item_tokens[data.items[target]]  # [B, L]
  targets = np.zeros((len(flat), layout.target_length), np.int32)
  targets[:, : layout.num_levels] = next_tokens
  if layout.append_eos:
    targets[everyone, np.count_nonzero(next_tokens, axis=1)] = EOS_ID
  return windows.Batch(inputs=inputs, targets=targets)


class ExampleOrder:
  """The order of `training.step.example_indices`, in NumPy."""

  def __init__(
    self, key: jax.Array, *, batch_size: int, strata: packing.Strata
  ):
    """Holds the order of one run.

    Args:
      key: The order's typed key: `rng.stream(run_key, "order")`.
      batch_size: Examples a step, over all hosts.
      strata: Of the examples, sorted by length.

    Raises:
      InputError: A size below 1, or too many examples for a permutation.
    """
    if batch_size < 1 or not 1 <= strata.num_examples <= permutation.MAX_SIZE:
      raise checks.InputError(
        f"A stream needs batch_size >= 1 and 1..2^30 examples; got "
        f"{batch_size=}, num_examples={strata.num_examples}."
      )
    self._share = batch_size // strata.count
    self._strata = strata
    self.num_steps = _MAX_EXAMPLES // batch_size  # at most
    self._round_keys = functools.lru_cache(maxsize=4 * strata.count)(
      lambda stratum, epoch: np.asarray(
        permutation.round_keys(
          jax.random.fold_in(jax.random.fold_in(key, stratum), epoch)
        )
      )
    )

  def indices(self, step: int) -> Int32[np.ndarray, "B"]:
    """Returns which examples a step's batch holds."""
    first = step * self._share
    position = np.arange(first, first + self._share, dtype=np.int64)
    parts = []
    for stratum, (start, size) in enumerate(
      zip(self._strata.starts, self._strata.sizes, strict=True)
    ):
      epoch, offset = np.divmod(position, size)
      out = np.empty(position.size, np.int32)
      for each in np.unique(epoch):
        chosen = epoch == each
        keys = self._round_keys(stratum, int(each))
        out[chosen] = permutation.permute_numpy(offset[chosen], keys, int(size))
      parts.append(np.int32(start) + out)
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class HostShard:
  """This host's part of every batch.

  Attributes:
    batch_size: Examples a step, over all hosts.
    host_index: This host.
    num_hosts: Hosts that share the batch.
  """

  batch_size: int
  host_index: int = 0
  num_hosts: int = 1

  def __post_init__(self):
    """Refuses hosts that do not share evenly."""
    if not 0 <= self.host_index < self.num_hosts:
      raise checks.InputError(
        f"host_index must lie in 0..{self.num_hosts - 1}; got "
        f"{self.host_index}."
      )
    if self.batch_size < 1 or self.batch_size % self.num_hosts:
      raise checks.InputError(
        f"batch_size={self.batch_size} must be a positive multiple of "
        f"num_hosts={self.num_hosts}."
      )

  @property
  def local_size(self) -> int:
    """Rows of a batch on this host."""
    return self.batch_size // self.num_hosts

  def part(self, num_rows: int) -> slice:
    """Returns which of a packed batch's rows are this host's."""
    share = num_rows // self.num_hosts
    return slice(self.host_index * share, (self.host_index + 1) * share)


class Stream:
  """An endless iterator over this host's `windows.Batch`es of NumPy arrays."""

  def __init__(self, facts: State):
    """Starts at the first batch.

    Args:
      facts: What must be the same where a state is restored.
    """
    self._facts = facts
    self._step = 0
    self._iterator: Iterator[windows.Batch] | None = None

  def _open(self, step: int) -> Iterator[windows.Batch]:
    raise NotImplementedError

  def __iter__(self) -> "Stream":
    """Returns itself."""
    return self

  def __next__(self) -> windows.Batch:
    """Returns the next batch."""
    if self._iterator is None:
      self._iterator = self._open(self._step)
    batch = next(self._iterator)
    self._step += 1
    return batch

  def state(self) -> State:
    """Returns the position, JSON types, for a checkpoint."""
    return {**self._facts, "step": self._step}

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes to a position that `state` returned; the next batch is that one.

    The number of hosts may have changed in between.

    Raises:
      InputError: The state is of a stream over other data or batches.
    """
    for name, value in self._facts.items():
      if state.get(name) != value:
        raise checks.InputError(
          f"The stream's state has {name}={state.get(name)}, this stream "
          f"{value}; resume with the data and settings it was saved with."
        )
    self._step = int(state["step"])
    self._iterator = None


class GrainStream(Stream):
  """The device sampler's batches, gathered on the host by grain's threads.

  Batch for batch what `training.step.DeviceSampler` cuts with the same key,
  packed alike; a host gathers its rows alone.
  """

  def __init__(
    self,
    data: windows.TrainingData,
    layout: windows.WindowLayout,
    *,
    key: jax.Array,
    shard: HostShard,
    strata: packing.Strata,
    plan: packing.PackPlan | None,
    num_threads: int = 4,
    prefetch_batches: int = 16,
  ):
    """Opens the stream.

    Args:
      data: From `host_data`, its examples sorted by length.
      layout: How examples become tokens.
      key: The order's typed key, the same on all hosts.
      shard: This host's part of the rows.
      strata: Of the examples.
      plan: How a batch is packed, its rows dividing by the hosts; None for
        one example a row.
      num_threads: That gather; 0 gathers when asked.
      prefetch_batches: Kept ready ahead of use.

    Raises:
      InputError: grain is not installed, or there are no examples.
    """
    self._grain = _import("grain", "grain==0.2.18")
    order = ExampleOrder(key, batch_size=shard.batch_size, strata=strata)
    if plan is None:
      chosen = shard.part(shard.batch_size)
    else:
      chosen, plan = plan.take_rows(shard.part(plan.num_rows))
    super().__init__(
      {"batch_size": shard.batch_size, "num_examples": data.num_examples}
    )
    self._num_steps = order.num_steps
    self._read = self._grain.ReadOptions(
      num_threads=num_threads,
      prefetch_buffer_size=prefetch_batches if num_threads else 0,
    )

    def batch(step: int) -> windows.Batch:
      found = gather_numpy(data, order.indices(step)[chosen], layout)
      return found if plan is None else packing.pack(found, plan)

    self._batch: Callable[[int], windows.Batch] = batch

  def _open(self, step: int) -> Iterator[windows.Batch]:
    steps = self._grain.MapDataset.range(step, self._num_steps)
    return iter(steps.map(self._batch).to_iter_dataset(self._read))


class SeqioStream(Stream):
  """Batches of a registered seqio task or mixture.

  Epoch e of a task comes in the order of seed + e; what does not fill its
  last batch is left out, other examples every epoch. A mixture has no epochs.
  """

  def __init__(
    self,
    name: str,
    layout: windows.WindowLayout,
    *,
    seed: int,
    shard: HostShard,
    split: str = "train",
    cache_dir: str | None = None,
  ):
    """Opens the stream.

    Args:
      name: Of the task or mixture.
      layout: For the lengths of inputs and targets.
      seed: Of the order, the same on all hosts.
      shard: This host's part: every num_hosts-th example.
      split: Its split.
      cache_dir: Where `launch.cache_tasks` wrote; None computes on the fly.

    Raises:
      InputError: seqio is not installed, unknown names, or fewer examples
        than a batch.
    """
    _import("seqio", "seqio==0.0.20")
    import seqio

    from gr_jax.tasks import batches

    self._batches = functools.partial(
      batches.batches,
      name,
      split=split,
      batch_size=shard.local_size,
      sequence_length={
        "inputs": layout.input_length,
        "targets": layout.target_length,
      },
      shuffle=True,
      host_index=shard.host_index,
      num_hosts=shard.num_hosts,
      cache_dir=cache_dir,
    )
    self._seed = seed
    self._batches(seed=seed)  # refuses unknown names before the first batch
    self._epoch_steps = None
    facts = {"batch_size": shard.batch_size, "seed": seed}
    if name in seqio.TaskRegistry.names():
      examples = seqio.TaskRegistry.get(name).num_input_examples(split)
      # Files of a cache differ by one example, and a host reads several.
      spare = 0 if cache_dir is None else _num_files(cache_dir, name, split)
      fewest = (examples - spare) // shard.num_hosts
      self._epoch_steps = fewest // shard.local_size
      facts["num_examples"] = examples
      if self._epoch_steps < 1:
        raise checks.InputError(
          f"Task {name!r} has {examples} examples, too few for "
          f"batch_size={shard.batch_size}; lower it."
        )
    super().__init__(facts)

  def _open(self, step: int) -> Iterator[windows.Batch]:
    if self._epoch_steps is None:
      yield from self._batches(
        seed=self._seed, num_epochs=None, skip_batches=step
      )
      return
    epoch, skip = divmod(step, self._epoch_steps)
    while True:
      found = self._batches(seed=self._seed + epoch, skip_batches=skip)
      for _ in range(self._epoch_steps - skip):
        yield next(found)
      epoch, skip = epoch + 1, 0


def _num_files(cache_dir: str, name: str, split: str) -> int:
  import seqio

  folder = os.path.join(cache_dir, seqio.get_task_dir_from_name(name))
  prefix = seqio.get_cached_tfrecord_prefix(folder, split)
  return len(glob.glob(f"{glob.escape(prefix)}-*-of-*"))


def _import(module: str, requirement: str) -> Any:
  try:
    return __import__(module)
  except ModuleNotFoundError as error:
    raise checks.InputError(
      f"This loader needs {error.name!r}; pip install {requirement}, or train "
      "with the device loader."
    ) from error
