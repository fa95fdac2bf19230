"""A seqio task or mixture -> padded numpy batches for one host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import seqio
import tensorflow as tf

from gr_jax.core import checks
from gr_jax.tasks import windows

_FEATURES = ("inputs", "targets")


def batches(
  name: str,
  *,
  split: str,
  batch_size: int,
  sequence_length: Mapping[str, int],
  shuffle: bool,
  seed: int | None = None,
  num_epochs: int | None = 1,
  drop_remainder: bool = True,
  host_index: int = 0,
  num_hosts: int = 1,
  skip_batches: int = 0,
  cache_dir: str | None = None,
) -> Iterator[windows.Batch]:
  """Yields batches of numpy arrays; places nothing on a device.

  The same arguments yield the same batches, so a run resumes by skipping
  what it has seen.

  Args:
    name: A registered task or mixture.
    split: Its split.
    batch_size: Examples of a batch on this host.
    sequence_length: Tokens of "inputs" and "targets", as padded.
    shuffle: Whether examples come in random order.
    seed: Of the random order; needed to resume a shuffled run.
    num_epochs: Passes over the data, None for no end.
    drop_remainder: Whether a last, smaller batch is left out.
    host_index: This host.
    num_hosts: Hosts among which the examples are divided.
    skip_batches: Batches left out at the start.
    cache_dir: Where `cache.cache_task` wrote; None computes on the fly.

  Raises:
    InputError: Unknown name or split, `batch_size` below 1, a host outside
      the hosts, no cache where one was named, or a length that would trim.
  """
  checks.check_known(
    name,
    {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()},
    "seqio task",
  )
  provider = seqio.get_mixture_or_task(name)
  checks.check_known(split, provider.splits, f"split of {name}")
  if batch_size < 1:
    raise checks.InputError(f"batch_size must be at least 1; got {batch_size}.")
  if not 0 <= host_index < num_hosts:
    raise checks.InputError(
      f"host_index must lie in 0..{num_hosts - 1}; got {host_index}."
    )
  if cache_dir is not None:
    seqio.add_global_cache_dirs([cache_dir])
    for task in seqio.get_subtasks(provider):
      if task.cache_dir is None:
        raise checks.InputError(
          f"Task {task.name!r} has no cache under {cache_dir!r}; write it "
          "first, or leave cache_dir out."
        )
  dataset = provider.get_dataset(
    sequence_length=dict(sequence_length),
    split=split,
    use_cached=cache_dir is not None,
    shuffle=shuffle,
    seed=seed,
    shard_info=seqio.ShardInfo(index=host_index, num_shards=num_hosts),
    num_epochs=num_epochs,
  )
  dataset = dataset.map(_only_tokens).padded_batch(
    batch_size,
    padded_shapes={name: [sequence_length[name]] for name in _FEATURES},
    drop_remainder=drop_remainder,
  )
  dataset = dataset.skip(skip_batches).prefetch(tf.data.AUTOTUNE)
  return _as_batches(dataset)


@tf.autograph.experimental.do_not_convert
def _only_tokens(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  return {name: example[name] for name in _FEATURES}


def _as_batches(dataset: tf.data.Dataset) -> Iterator[windows.Batch]:
  for batch in dataset.as_numpy_iterator():
    yield windows.Batch(
      inputs=np.asarray(batch["inputs"]), targets=np.asarray(batch["targets"])
    )
