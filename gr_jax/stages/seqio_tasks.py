"""A run's data as a seqio task, and what gin files ask of a run.

Every function takes the folder of a run, so that a gin file names that folder
once and types no size: lengths, vocabulary and network follow from what
`launch.embed` and `launch.tokenize` wrote.
"""

import dataclasses
import functools
import os
import pathlib
from typing import Any

from gr_jax.core import artifact, checks
from gr_jax.data import splits
from gr_jax.decoding.trie import Trie
from gr_jax.models.config import T5Config
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.stages import generator, live_catalog, prepare
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tasks import windows

TASK_NAME = "next_item"
_CACHE = "cached_tasks"


@dataclasses.dataclass(frozen=True, eq=False)
class RegisteredTask:
  """A run's seqio task and what a trainer needs beside it.

  Attributes:
    name: Of the task in seqio's registry.
    vocabulary: A `seqio.Vocabulary`, of inputs and targets alike.
    feature_lengths: The shortest `sequence_length` that trims nothing.
    generator: The untrained network, the token layout and the trie.
    cache_dir: Where `launch.cache_tasks` writes examples of exactly this
      data, these IDs and these settings.
  """

  name: str
  vocabulary: Any
  feature_lengths: dict[str, int]
  generator: generator.Generator
  cache_dir: pathlib.Path

  @property
  def is_cached(self) -> bool:
    """Whether the examples have been written."""
    return (self.cache_dir / self.name).is_dir()


def register(
  config: RunConfig, workdir: Workdir, name: str = TASK_NAME
) -> RegisteredTask:
  """Adds a run's task to seqio, replacing one of the same name.

  Splits are "train" (augmented as the run's config says), "validation" and
  "test"; metrics are those of `seqio_metrics`, for beams that come best last.

  Raises:
    InputError: No semantic IDs yet, seqio is not installed, or examples that
      are no pairs of inputs and one item.
  """
  if config.task.augmentation == windows.SEQUENCES:
    raise checks.InputError(
      f"task.augmentation={windows.SEQUENCES!r} is no seqio task; use "
      "'prefixes' or 'subsequences'."
    )
  seqio, _, _, seqio_vocabulary = seqio_files()
  stored = prepare.load_data(workdir)
  # Appended items may be returned, removed ones may not.
  live = live_catalog.load(workdir, stored)
  catalog = live.sids
  made = dataclasses.replace(
    generator.make_generator(config, catalog), trie=live.trie()
  )
  vocabulary = seqio_vocabulary.SidSeqioVocabulary(made.vocabulary)
  add_task(name, config, stored, catalog, vocabulary)
  content = artifact.hash_config(
    [
      stored.artifact.hash,
      live.sids_artifact.hash,
      dataclasses.asdict(config.task),
    ]
  )
  cache_dir = workdir.root / _CACHE / content[:16]
  registered = RegisteredTask(
    name=name,
    vocabulary=vocabulary,
    feature_lengths={
      "inputs": made.layout.input_length,
      "targets": made.layout.target_length,
    },
    generator=made,
    cache_dir=cache_dir,
  )
  if registered.is_cached:
    seqio.add_global_cache_dirs([str(cache_dir)])
  return registered


def add_task(
  name: str,
  config: RunConfig,
  stored: prepare.StoredDataset,
  catalog: SidCatalog,
  vocabulary: Any,
  layout_index: int = 0,
) -> None:
  """Adds a task to seqio, replacing one of the same name.

  Args:
    name: Registry name.
    config: The run's settings.
    stored: Its data set.
    catalog: Its semantic IDs.
    vocabulary: A `SidSeqioVocabulary` that has them.
    layout_index: As which of its layouts.

  Raises:
    InputError: Examples that only the trainer's own loaders make.
  """
  task = config.task
  if task.augmentation == windows.SEQUENCES or task.neighbor_share:
    raise checks.InputError(
      "A seqio task has one item of the data a target; set "
      f"task.neighbor_share={task.neighbor_share} to 0 and "
      f"task.augmentation={task.augmentation!r} to 'prefixes'."
    )
  seqio, next_item, seqio_metrics, _ = seqio_files()
  if name in seqio.TaskRegistry.names():
    seqio.TaskRegistry.remove(name)
  metrics = seqio_metrics.ItemMetrics(
    catalog, vocabulary.layouts[layout_index], best_last=True
  )
  next_item.register_splits(
    name,
    interactions=stored.interactions,
    split=splits.leave_one_out(stored.interactions),
    catalog=catalog,
    vocabulary=vocabulary,
    max_history=task.max_history,
    augmentation=task.augmentation,
    layout_index=layout_index,
    **metrics.arguments(),
  )


def seqio_files() -> tuple[Any, Any, Any, Any]:
  """Imports seqio, `next_item`, `seqio_metrics` and `seqio_vocabulary`.

  Raises:
    InputError: seqio or TensorFlow is not installed.
  """
  try:
    import seqio

    from gr_jax.tasks import next_item, seqio_metrics, seqio_vocabulary
  except ModuleNotFoundError as error:
    raise checks.InputError(
      f"seqio tasks need {error.name!r}; pip install seqio==0.0.20 "
      "tensorflow==2.21.0 tensorflow-text==2.21.1."
    ) from error
  return seqio, next_item, seqio_metrics, seqio_vocabulary


@functools.lru_cache(maxsize=8)
def _registered(workdir: str, name: str) -> RegisteredTask:
  run = Workdir(pathlib.Path(workdir))
  return register(run.read_config(), run, name)


def open_run(
  workdir: str | os.PathLike[str], name: str = TASK_NAME
) -> RegisteredTask:
  """Registers the task of a run's folder, once a process.

  Raises:
    InputError: It holds no run, or one without semantic IDs.
  """
  return _registered(os.path.abspath(workdir), name)


def task_name(workdir: str, name: str = TASK_NAME) -> str:
  """Returns the name of the run's task, registered."""
  return open_run(workdir, name).name


def vocabulary(workdir: str, name: str = TASK_NAME) -> Any:
  """Returns the run's `seqio.Vocabulary`."""
  return open_run(workdir, name).vocabulary


def feature_lengths(workdir: str, name: str = TASK_NAME) -> dict[str, int]:
  """Returns the run's `sequence_length`."""
  return dict(open_run(workdir, name).feature_lengths)


def trie(workdir: str, name: str = TASK_NAME) -> Trie:
  """Returns the trie of the run's recommendable items."""
  return open_run(workdir, name).generator.trie


def network(workdir: str, name: str = TASK_NAME) -> T5Config:
  """Returns the sizes of the run's network."""
  return open_run(workdir, name).generator.model.config
