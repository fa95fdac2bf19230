"""What the TensorFlow Datasets builders share; imports tensorflow_datasets.

A data set comes as two builder configs. `<name>` has one example a user and
the splits of leave-one-out: `train` ends before the validation item, the
history in `test` includes it. `<name>_items` has one example an item in split
`items`, in the order that item indices refer to.

Downloads are verified against `checksums.tsv` beside this file. TFDS writes it
when somebody who can reach the public files runs

    from gr_jax.data.readers import tfds_amazon2014, tfds_sequences
    tfds_sequences.record_checksums(tfds_amazon2014.Amazon2014)

(or, where apache-beam is installed, `tfds build --register_checksums`), and it
is then committed. Without it TFDS downloads unverified, and the published
counts, which are always asserted, are the check that remains.
"""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from gr_jax.data import interactions as interactions_lib
from gr_jax.data import splits
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.data.interactions import Interactions

_ITEMS_SUFFIX = "_items"


@dataclasses.dataclass
class SequencesConfig(tfds.core.BuilderConfig):
  """One table of one data set.

  Attributes:
    subset: What the builder reads, e.g. a category.
    items: True for the table of items, False for that of users.
  """

  subset: str = ""
  items: bool = False


def make_configs(subsets: dict[str, str]) -> list[SequencesConfig]:
  """Returns both configs of every subset.

  Args:
    subsets: Config name -> what it reads.
  """
  return [
    SequencesConfig(
      name=name + (_ITEMS_SUFFIX if items else ""),
      subset=subset,
      items=items,
      description=f"{'Items' if items else 'Histories'} of {subset}.",
    )
    for name, subset in subsets.items()
    for items in (False, True)
  ]


class SequencesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Turns a `Dataset` into TFDS tables; a subclass says where it is from."""

  VERSION = tfds.core.Version("1.0.0")
  DESCRIPTION: str
  HOMEPAGE: str
  CITATION: str

  @abc.abstractmethod
  def _read(self, dl_manager: tfds.download.DownloadManager) -> Dataset:
    """Downloads and reads the config's subset, counts checked."""

  def _info(self) -> tfds.core.DatasetInfo:
    if self.builder_config.items:
      features = {
        name: tfds.features.Text()
        for name in ("item_id", "title", "category", "text")
      }
    else:
      features = {
        "user_id": tfds.features.Text(),
        "history": tfds.features.Sequence(np.int32),
        "history_seconds": tfds.features.Sequence(np.float64),
        "target": tfds.features.Scalar(np.int32),
        "target_seconds": tfds.features.Scalar(np.float64),
      }
    return self.dataset_info_from_configs(
      description=self.DESCRIPTION,
      homepage=self.HOMEPAGE,
      citation=self.CITATION,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,  # Row n is item or user n.
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    data = self._read(dl_manager)
    if self.builder_config.items:
      return {"items": self._item_examples(data.catalog)}
    split = splits.leave_one_out(data.interactions)
    return {
      "train": self._user_examples(data.interactions, split.train_end - 1),
      "validation": self._user_examples(data.interactions, split.train_end),
      "test": self._user_examples(data.interactions, split.train_end + 1),
    }

  def _generate_examples(self, **kwargs: Any) -> Any:
    """Never called: `_split_generators` returns the examples."""
    raise NotImplementedError

  def _item_examples(
    self, catalog: ItemCatalog
  ) -> Iterator[tuple[int, dict[str, str]]]:
    rows = zip(
      catalog.item_ids,
      catalog.titles,
      catalog.categories,
      catalog.texts,
      strict=True,
    )
    for index, (item_id, title, category, text) in enumerate(rows):
      yield (
        index,
        {
          "item_id": item_id,
          "title": title,
          "category": category,
          "text": text,
        },
      )

  def _user_examples(
    self, data: Interactions, targets: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    """One example a user whose target stands at `targets[u]`."""
    for user, target in enumerate(targets.tolist()):
      start = int(data.offsets[user])
      yield (
        user,
        {
          "user_id": data.user_ids[user],
          "history": data.items[start:target],
          "history_seconds": data.times[start:target],
          "target": int(data.items[target]),
          "target_seconds": float(data.times[target]),
        },
      )


def record_checksums(
  builder: type[SequencesBuilder], data_dir: str | None = None
) -> None:
  """Downloads a data set anew and records its files' checksums.

  They go to `checksums.tsv` beside the builder, to be committed.

  Args:
    builder: The data set; all its subsets are downloaded and prepared.
    data_dir: Where TFDS keeps prepared data; None for its default. Subsets
      prepared there already are skipped.
  """
  (builder.code_path.parent / "checksums.tsv").touch()
  record = tfds.download.DownloadConfig(register_checksums=True)
  for config in builder.BUILDER_CONFIGS:
    if not config.items:  # Both tables come from the same files.
      builder(config=config, data_dir=data_dir).download_and_prepare(
        download_config=record
      )


def read_prepared(
  builder: type[SequencesBuilder], name: str, data_dir: str | None
) -> Dataset:
  """Downloads and prepares both tables where needed, and reads them back.

  Args:
    builder: The data set.
    name: Its config of users, e.g. "beauty".
    data_dir: Where TFDS keeps prepared data; None for its default.
  """
  tables = {}
  for config, split in ((name, "test"), (name + _ITEMS_SUFFIX, "items")):
    prepared = builder(config=config, data_dir=data_dir)
    prepared.download_and_prepare()
    tables[split] = list(tfds.as_numpy(prepared.as_dataset(split=split)))
  items, users = tables["items"], tables["test"]
  columns = (
    tuple(row[field].decode() for row in items)
    for field in ("item_id", "text", "title", "category")
  )
  lengths = np.asarray([len(row["history"]) + 1 for row in users])
  return Dataset(
    ItemCatalog(*columns),
    Interactions(
      user_ids=tuple(row["user_id"].decode() for row in users),
      items=_joined(users, "history", "target", np.int32),
      offsets=interactions_lib.offsets_from_lengths(lengths),
      times=_joined(users, "history_seconds", "target_seconds", np.float64),
      absolute_times=True,
    ),
  )


def _joined(
  users: list[dict[str, Any]], history: str, target: str, dtype: Any
) -> np.ndarray:
  """Every user's history and target back to back, flat."""
  parts = [part for row in users for part in (row[history], [row[target]])]
  return np.concatenate(parts).astype(dtype)
