"""Writes a run's examples, tokenized, where seqio and T5X read them."""

import json
from collections.abc import Sequence

from absl import logging

from gr_jax.core import checks
from gr_jax.stages import seqio_tasks
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir


def cache_tasks(
  config: RunConfig,
  workdir: Workdir,
  *,
  num_shards: int = 8,
  splits: Sequence[str] = (),
) -> dict[str, dict[str, int]]:
  """Writes every split of the run's task in seqio's cache format.

  The folder's name follows from the data, the semantic IDs and the task's
  settings, so no reader ever meets examples of another run; what matches is
  kept. Training examples are written in random order, by the run's seed.

  Args:
    config: The run's settings.
    workdir: Holds the data set and the semantic IDs.
    num_shards: Files a split; as many hosts can read side by side.
    splits: Which to write; all when empty.

  Returns:
    Each split's statistics; see `tasks.cache.cache_task`.

  Raises:
    InputError: No semantic IDs yet, seqio is not installed, an unknown split,
      or `num_shards` below 1.
  """
  if num_shards < 1:
    raise checks.InputError(f"num_shards must be at least 1; got {num_shards}.")
  task = seqio_tasks.register(config, workdir)
  folder = task.cache_dir / task.name
  if task.is_cached:
    logging.info("cached tasks: %s matches; skipped.", folder)
    stats = {}
    for path in sorted(folder.glob("stats.*.json")):
      stats[path.name.split(".")[1]] = json.loads(path.read_text())
    missing = [split for split in splits if split not in stats]
    if missing:
      raise checks.InputError(
        f"{str(folder)!r} was written without split {missing[0]!r}; remove "
        "that folder and run again."
      )
    return stats
  from gr_jax.tasks import cache

  stats = cache.cache_task(
    task.name,
    task.cache_dir,
    splits=splits or None,
    num_shards=num_shards,
    seed=config.seed,
  )
  for split, counts in stats.items():
    logging.info(
      "cached tasks: %s: %s examples, at most %d + %d tokens.",
      split,
      f"{counts['examples']:,}",
      counts.get("inputs_max_tokens", 0),
      counts.get("targets_max_tokens", 0),
    )
  logging.info("cached tasks: written to %s.", folder)
  return stats
