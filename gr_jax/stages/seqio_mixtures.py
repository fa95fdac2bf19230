"""Several runs' data as one seqio mixture, for one network over all catalogs.

As in `seqio_tasks`, gin files name folders of runs and type no size. Levels of
different catalogs have tokens of their own; padding, EOS and user buckets are
common. Predictions are of one catalog at a time, by its trie and its layout.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from gr_jax.core import checks
from gr_jax.models.config import T5Config
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.stages import generator, live_catalog, prepare, seqio_tasks
from gr_jax.stages.workdir import Workdir

MIXTURE_NAME = "next_items"


@dataclasses.dataclass(frozen=True, eq=False)
class RegisteredMixture:
  """A seqio mixture of runs, and what a trainer needs beside it.

  Attributes:
    name: Of the mixture in seqio's registry.
    tasks: Of each run's task there, in the order of the runs.
    vocabulary: A `seqio.Vocabulary` with a layout a run.
    feature_lengths: The shortest `sequence_length` that trims nothing.
    network: Sizes of the network over all tokens.
  """

  name: str
  tasks: tuple[str, ...]
  vocabulary: Any
  feature_lengths: dict[str, int]
  network: T5Config


def register(
  workdirs: Sequence[Workdir],
  rates: Sequence[float],
  mixture: str = MIXTURE_NAME,
) -> RegisteredMixture:
  """Adds runs' tasks, under one vocabulary, and their mixture to seqio.

  Args:
    workdirs: Runs with semantic IDs, of one network and as many user buckets.
    rates: How often each is drawn from, relative to the others.
    mixture: Registry name; one of the same name is replaced.

  Raises:
    InputError: Runs that do not go together, as many rates as runs are not
      given, or as `seqio_tasks.register`.
  """
  seqio, next_item, _, seqio_vocabulary = seqio_tasks.seqio_files()
  if len(workdirs) != len(rates) or not workdirs:
    raise checks.InputError(
      f"A mixture needs one rate a run; got {len(workdirs)} runs and "
      f"{len(rates)} rates."
    )
  if len({workdir.root for workdir in workdirs}) < len(workdirs):
    raise checks.InputError("A mixture names a run twice; raise its rate.")
  configs = [workdir.read_config() for workdir in workdirs]
  for workdir, config in zip(workdirs[1:], configs[1:], strict=True):
    for what, values in {
      "model": (config.sections["model"], configs[0].sections["model"]),
      "task.num_user_buckets": (
        config.task.num_user_buckets,
        configs[0].task.num_user_buckets,
      ),
    }.items():
      if values[0] != values[1]:
        raise checks.InputError(
          f"Runs {str(workdirs[0].root)!r} and {str(workdir.root)!r} differ in "
          f"{what!r}; a mixture has one network."
        )
  stored = [prepare.load_data(workdir) for workdir in workdirs]
  catalogs = [
    live_catalog.load(workdir, data).sids
    for workdir, data in zip(workdirs, stored, strict=True)
  ]
  layouts = SidVocabulary.joint(
    catalogs, num_user_buckets=configs[0].task.num_user_buckets
  )
  vocabulary = seqio_vocabulary.SidSeqioVocabulary(*layouts)
  if mixture in seqio.MixtureRegistry.names():
    seqio.MixtureRegistry.remove(mixture)
  tasks = tuple(f"{mixture}_{index}" for index in range(len(workdirs)))
  lengths = []
  for index, task in enumerate(tasks):
    seqio_tasks.add_task(
      task, configs[index], stored[index], catalogs[index], vocabulary, index
    )
    lengths.append(
      seqio_vocabulary.sequence_lengths(
        vocabulary,
        [catalogs[index].num_levels],
        configs[index].task.max_history,
      )
    )
  next_item.register_mixture(mixture, dict(zip(tasks, rates, strict=True)))
  return RegisteredMixture(
    name=mixture,
    tasks=tasks,
    vocabulary=vocabulary,
    feature_lengths={
      feature: max(length[feature] for length in lengths)
      for feature in lengths[0]
    },
    network=configs[0].generator(
      layouts[-1].padded_size(generator.VOCAB_MULTIPLE)
    ),
  )


@functools.lru_cache(maxsize=8)
def _registered(
  workdirs: tuple[str, ...], rates: tuple[float, ...]
) -> RegisteredMixture:
  return register([Workdir(pathlib.Path(w)) for w in workdirs], rates)


def open_runs(
  workdirs: Sequence[str], rates: Sequence[float]
) -> RegisteredMixture:
  """Registers the mixture of runs' folders, once a process."""
  return _registered(tuple(map(os.path.abspath, workdirs)), tuple(rates))


def name(workdirs: Sequence[str], rates: Sequence[float]) -> str:
  """Returns the name of the mixture, registered."""
  return open_runs(workdirs, rates).name


def task_name(
  workdirs: Sequence[str], rates: Sequence[float], workdir: str
) -> str:
  """Returns the name of one run's task in the mixture."""
  return open_runs(workdirs, rates).tasks[layout_index(workdirs, workdir)]


def vocabulary(workdirs: Sequence[str], rates: Sequence[float]) -> Any:
  """Returns the `seqio.Vocabulary` of all runs."""
  return open_runs(workdirs, rates).vocabulary


def feature_lengths(
  workdirs: Sequence[str], rates: Sequence[float]
) -> dict[str, int]:
  """Returns the mixture's `sequence_length`."""
  return dict(open_runs(workdirs, rates).feature_lengths)


def network(workdirs: Sequence[str], rates: Sequence[float]) -> T5Config:
  """Returns the sizes of the network over all runs' tokens."""
  return open_runs(workdirs, rates).network


def layout_index(workdirs: Sequence[str], workdir: str) -> int:
  """Returns which of the vocabulary's layouts is a run's.

  Raises:
    InputError: The run is not in the mixture.
  """
  paths = [os.path.abspath(path) for path in workdirs]
  checks.check_known(os.path.abspath(workdir), paths, "run of the mixture")
  return paths.index(os.path.abspath(workdir))
