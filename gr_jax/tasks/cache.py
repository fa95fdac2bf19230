"""Writes a task's examples where seqio reads them, without Beam.

The format is that of seqio's own offline cache: TFRecord shards of
tf.train.Example, `info.<split>.json`, `stats.<split>.json` and an empty
`COMPLETED`, in a folder named after the task.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from gr_jax.core import checks, progress

_COMPLETED = "COMPLETED"


def cache_task(
  name: str,
  cache_dir: str | os.PathLike[str],
  *,
  splits: Sequence[str] | None = None,
  num_shards: int = 8,
  seed: int = 0,
) -> dict[str, dict[str, int]]:
  """Writes all examples of a task, tokenized; whole or not at all.

  Training examples are written in random order (by `seed`), for readers
  shuffle only within a buffer; those of other splits in their own order.

  Args:
    name: A registered task with a `seqio.CacheDatasetPlaceholder`.
    cache_dir: For `seqio.add_global_cache_dirs` and `batches.batches`; the
      task's folder below it must not exist.
    splits: Which to write, None for all.
    num_shards: Files per split; as many hosts can read side by side.
    seed: Of the order of training examples.

  Returns:
    Each split's statistics, as in `stats.<split>.json`: "examples", and
    tokens in all and at most per example of each feature.

  Raises:
    InputError: The task is unknown or cannot be cached, it has no such
      split, `num_shards` is below 1, or the folder exists.
  """
  checks.check_known(name, seqio.TaskRegistry.names(), "seqio task")
  task = seqio.TaskRegistry.get(name)
  if not task.supports_caching:
    raise checks.InputError(
      f"Task {name!r} has no seqio.CacheDatasetPlaceholder among its "
      "preprocessors; register it with next_item.register."
    )
  splits = tuple(task.splits) if splits is None else tuple(splits)
  for split in splits:
    checks.check_known(split, task.splits, f"split of {name}")
  if num_shards < 1:
    raise checks.InputError(f"num_shards must be at least 1; got {num_shards}.")
  folder = os.path.join(cache_dir, seqio.get_task_dir_from_name(name))
  if os.path.exists(folder):
    raise checks.InputError(
      f"{folder!r} exists; remove it, or name another cache_dir, so that no "
      "run reads tokens of an older catalog."
    )
  os.makedirs(os.path.dirname(folder), exist_ok=True)
  partial = tempfile.mkdtemp(prefix=".partial_", dir=os.path.dirname(folder))
  try:
    stats = {
      split: _write_split(task, split, partial, num_shards, seed)
      for split in splits
    }
    with open(os.path.join(partial, _COMPLETED), "w"):
      pass
    os.chmod(partial, 0o755)  # mkdtemp's folders are private
    os.rename(partial, folder)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return stats


def _write_split(
  task: seqio.Task, split: str, folder: str, num_shards: int, seed: int
) -> dict[str, int]:
  dataset = task.source.get_dataset(
    split=split, shuffle=split == "train", seed=seed
  )
  dataset = task.preprocess_precache(dataset, seed=seed)
  stats: dict[str, int] = {"examples": 0}
  total = task.source.num_input_examples(split)
  with (
    _shard_writers(folder, split, num_shards) as writers,
    progress.bar(f"caching {split}", total=total, unit="example") as advance,
  ):
    for example in dataset.as_numpy_iterator():
      shard = stats["examples"] % num_shards
      record = seqio.dict_to_tfexample(example)
      writers[shard].write(record.SerializeToString())
      _count(stats, example, task.output_features)
      advance(1)
  info = {
    "num_shards": num_shards,
    "features": _features(dataset.element_spec),
    "seqio_version": seqio.__version__,
  }
  for path, content in (
    (seqio.get_cached_info_path(folder, split), info),
    (seqio.get_cached_stats_path(folder, split), stats),
  ):
    with open(path, "w") as file:
      json.dump(content, file, indent=2, sort_keys=True)
  return stats


@contextlib.contextmanager
def _shard_writers(
  folder: str, split: str, num_shards: int
) -> Iterator[list[tf.io.TFRecordWriter]]:
  prefix = seqio.get_cached_tfrecord_prefix(folder, split)
  with contextlib.ExitStack() as stack:
    yield [
      stack.enter_context(
        tf.io.TFRecordWriter(f"{prefix}-{shard:05d}-of-{num_shards:05d}")
      )
      for shard in range(num_shards)
    ]


def _features(spec: Mapping[str, tf.TensorSpec]) -> dict[str, Any]:
  """Returns how seqio shall parse each feature: first axis of any length."""
  features = {}
  for name, tensor in spec.items():
    shape = tensor.shape.as_list()
    features[name] = {
      "shape": [None, *shape[1:]] if shape else [],
      "dtype": tensor.dtype.name,
    }
  return features


def _count(
  stats: dict[str, int],
  example: Mapping[str, np.ndarray],
  features: Mapping[str, seqio.Feature],
) -> None:
  stats["examples"] += 1
  for name in features:
    size = int(example[name].size)
    total, most = f"{name}_tokens", f"{name}_max_tokens"
    stats[total] = stats.get(total, 0) + size
    stats[most] = max(stats.get(most, 0), size)
