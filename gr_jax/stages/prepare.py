"""Stages 1 and 2: the data set and its items' embeddings."""

import dataclasses

import jax
from absl import logging

from gr_jax.core import artifact, processes, rng
from gr_jax.data import Interactions, ItemCatalog, splits
from gr_jax.data.dataset import Dataset
from gr_jax.embeddings.table import EmbeddingTable
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class StoredDataset:
  """The data set of a workdir."""

  artifact: artifact.Artifact
  catalog: ItemCatalog
  interactions: Interactions


def prepare_data(
  config: RunConfig, workdir: Workdir
) -> tuple[StoredDataset, Dataset]:
  """Reads or makes the data set and stores it.

  The source is read every time, so that a changed file is never missed; the
  artifact's hash, and with it every later stage, changes only with the
  content.

  Returns:
    The data set as stored, and as read (with the vectors beside it).

  Raises:
    InputError: The reader refuses the files, a user has under 3 items, or
      the job's processes read different data.
  """
  with processes.together():
    dataset = config.data.load()
    splits.leave_one_out(dataset.interactions)  # refuses too short histories
  arrays = artifact.prefixed(dataset.catalog.to_arrays(), "catalog")
  arrays |= artifact.prefixed(dataset.interactions.to_arrays(), "interactions")
  # The path is where the content lay, the loader how it is read in training.
  section = {
    k: v
    for k, v in config.sections["data"].items()
    if k not in ("path", "loader")
  }
  processes.check_same("data set", artifact.hash_arrays(arrays))
  users, items, interactions = dataset.counts
  stored = workdir.save(
    "dataset",
    section,
    arrays,
    parents={},
    metadata={"users": users, "items": items, "interactions": interactions},
  )
  logging.info(
    "dataset: %s users, %s items, %s interactions.",
    *(f"{count:,}" for count in dataset.counts),
  )
  return StoredDataset(stored, dataset.catalog, dataset.interactions), dataset


def load_data(workdir: Workdir) -> StoredDataset:
  """Reads the workdir's data set.

  Raises:
    InputError: It was not prepared, or is damaged.
  """
  stored = workdir.load("dataset")
  return StoredDataset(
    stored,
    ItemCatalog.from_arrays(artifact.group(stored.arrays, "catalog")),
    Interactions.from_arrays(artifact.group(stored.arrays, "interactions")),
  )


def embed(
  config: RunConfig, workdir: Workdir, stored: StoredDataset, dataset: Dataset
) -> artifact.Artifact:
  """Embeds every item's text, or reads vectors computed elsewhere.

  Raises:
    InputError: The embedder refuses the texts or the vectors.
  """
  section = {
    k: v for k, v in config.sections["embedding"].items() if k != "path"
  }
  parents = {"dataset": stored.artifact}
  if not config.embedding.reads_files:
    kept = workdir.matching("embeddings", section, parents)
    if kept is not None:
      return kept
  key = rng.stream(jax.random.key(config.seed), "embedding")
  table = config.embedding.embed(dataset, key=key)
  saved = workdir.save("embeddings", section, table.to_arrays(), parents)
  logging.info("embeddings: %s x %d.", *table.vectors.shape)
  return saved


def load_embeddings(
  workdir: Workdir, stored: StoredDataset
) -> tuple[artifact.Artifact, EmbeddingTable]:
  """Reads the workdir's embeddings of this data set.

  Raises:
    InputError: They are missing, damaged, or of another data set.
  """
  saved = workdir.load_child("embeddings", {"dataset": stored.artifact})
  return saved, EmbeddingTable.from_arrays(saved.arrays)
