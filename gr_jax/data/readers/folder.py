"""The dataset folder format, read and written.

items.jsonl.gz        one JSON object a line: `item_id`, and `title`,
                      `brand`, `categories` (list of paths), `keywords`,
                      `description` where known; or one ready `text`
interactions.txt      one user a line: user id, then item ids oldest first
interactions.parquet  the same as columns `user_id`, `item_ids`, and one of
                      `times` (seconds, comparable across users) and
                      `gap_seconds` (since the user's previous item), each
                      a list a user; wins over the .txt
sequences.parquet     the same, beside an interactions.txt that lacks times
embeddings.NAME.npy   optional vectors, row n for line n of the items
"""

import dataclasses
import gzip
import json
import os
import pathlib
import re
import shutil
import uuid
from typing import Any

import numpy as np

from gr_jax.core.checks import InputError
from gr_jax.data import catalog as catalog_lib
from gr_jax.data import dataset as dataset_lib
from gr_jax.data import interactions as interactions_lib
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.data.interactions import Interactions
from gr_jax.data.readers.lines import read_lines

_TEXT_FIELDS = ("title", "brand", "keywords", "description", "text")


@dataclasses.dataclass(frozen=True)
class FolderData:
  """A folder in the format of this module.

  Attributes:
    path: The folder.
    min_user_interactions: Users with fewer are left out; 0 keeps all.
    expected_counts: Published users, items, interactions of the data as
      loaded, refused if they differ; empty for data without such figures.
  """

  path: str
  min_user_interactions: int = 0
  expected_counts: tuple[int, ...] = ()

  def load(self) -> Dataset:
    """Reads the folder.

    Raises:
      InputError: The folder or a file in it is missing or damaged, or the
        counts are not the expected ones.
    """
    if self.expected_counts and len(self.expected_counts) != 3:
      raise InputError(
        "expected_counts must be (users, items, interactions); got "
        f"{self.expected_counts}."
      )
    data = read_folder(self.path)
    if self.min_user_interactions:
      kept = data.interactions.at_least(self.min_user_interactions)
      if not kept.num_users:
        raise InputError(
          f"No user of {data.interactions.num_users} has "
          f"min_user_interactions={self.min_user_interactions}; lower it."
        )
      data = dataclasses.replace(data, interactions=kept)
    if self.expected_counts:
      dataset_lib.check_counts(self.path, data.counts, self.expected_counts)
    return data


def read_folder(path: str | os.PathLike[str]) -> Dataset:
  """Reads a dataset folder whole.

  Args:
    path: The folder.

  Raises:
    InputError: The folder or a file in it is missing or damaged.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise InputError(
      f"No dataset folder {str(path)!r}; set data.path to a folder with "
      "items.jsonl.gz and interactions.txt."
    )
  catalog = read_catalog(_first_file(folder, "items.jsonl.gz", "items.jsonl"))
  file = _first_file(
    folder, "interactions.parquet", "interactions.txt", "sequences.parquet"
  )
  if file.suffix == ".txt":
    interactions = _read_text(file, catalog)
    timed = folder / "sequences.parquet"
    if timed.is_file():
      interactions = _with_times(interactions, timed, catalog)
  else:
    interactions = _read_parquet(file, catalog)
  return Dataset(catalog, interactions, find_embeddings(folder))


def _first_file(folder: pathlib.Path, *names: str) -> pathlib.Path:
  for name in names:
    if (folder / name).is_file():
      return folder / name
  raise InputError(
    f"Folder {str(folder)!r} has none of {', '.join(names)}; add one or "
    "correct data.path."
  )


def find_embeddings(folder: str | os.PathLike[str]) -> dict[str, str]:
  """Returns name -> path of every `embeddings.NAME.npy`, sorted by name.

  A dtype at the end of the name is left out: `embeddings.minilm.f16.npy` is
  "minilm".

  Args:
    folder: Where to look.

  Raises:
    InputError: Two files have one name.
  """
  found: dict[str, str] = {}
  for file in sorted(pathlib.Path(folder).glob("embeddings.*.npy")):
    name = file.name.removeprefix("embeddings.").removesuffix(".npy")
    name = re.sub(r"\.f(16|32|64)$", "", name)
    if name in found:
      raise InputError(
        f"Embeddings {name!r} lie in {found[name]!r} and {str(file)!r}; keep "
        "one of them."
      )
    found[name] = str(file)
  return found


def read_catalog(path: str | os.PathLike[str]) -> ItemCatalog:
  """Reads items from JSON lines, plain or gzipped.

  Args:
    path: The file, as the module's docstring describes `items.jsonl.gz`.

  Raises:
    InputError: No such file, a malformed line, an item without id or text, or
      an id twice.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise InputError(f"No items file {str(path)!r}; check the path.")
  rows = [_parse_item(line, file, number) for number, line in read_lines(file)]
  if not rows:
    raise InputError(f"{str(file)!r} holds no items.")
  return ItemCatalog(*(tuple(column) for column in zip(*rows, strict=True)))


def _parse_item(
  line: str, file: pathlib.Path, number: int
) -> tuple[str, str, str, str]:
  """Returns an item's id, text, title and category path."""
  where = f"Line {number} of {str(file)!r}"
  try:
    record: Any = json.loads(line)
  except json.JSONDecodeError as error:
    raise InputError(f"{where} is not JSON ({error}); mend it.") from error
  if not isinstance(record, dict):
    raise InputError(f"{where} is not a JSON object; got {line.strip()[:40]}.")
  item_id = record.get("item_id")
  if isinstance(item_id, bool) or not isinstance(item_id, int | str):
    raise InputError(
      f"{where} needs an `item_id` that is a string or a whole number; got "
      f"{item_id!r}."
    )
  fields = {name: record.get(name) or "" for name in _TEXT_FIELDS}
  for name, value in fields.items():
    if not isinstance(value, str):
      raise InputError(f"{where}: `{name}` must be a string; got {value!r}.")
  categories = record.get("categories") or []
  if not isinstance(categories, list) or not all(
    isinstance(path, list) and all(isinstance(part, str) for part in path)
    for path in categories
  ):
    raise InputError(
      f"{where}: `categories` must be a list of lists of names; got "
      f"{str(categories)[:60]}."
    )
  text = fields.pop("text") or catalog_lib.item_text(
    categories=categories, **fields
  )
  if not text.strip():
    raise InputError(
      f"{where}: item {str(item_id)!r} has no text; give it a title, brand, "
      "categories, keywords, description or text, or drop it."
    )
  path = catalog_lib.category_path(categories)
  return str(item_id), text, fields["title"], path


def _item_indices(
  item_ids: Any, catalog: ItemCatalog, user_ids: list[str], lengths: np.ndarray
) -> np.ndarray:
  """Looks up flat item ids, a pyarrow array of any kind; int32 [T]."""
  import pyarrow as pa
  import pyarrow.compute as pc

  names = item_ids.cast(pa.string())
  known = pa.array(catalog.item_ids, pa.string())
  indices = pc.fill_null(pc.index_in(names, value_set=known), -1)
  indices = indices.to_numpy(zero_copy_only=False).astype(np.int32)
  unknown = np.flatnonzero(indices < 0)
  if unknown.size:
    ends = np.cumsum(lengths)
    user = user_ids[int(np.searchsorted(ends, unknown[0], side="right"))]
    raise InputError(
      f"User {user!r} chose item {names[int(unknown[0])].as_py()!r}, which is "
      f"not among the {catalog.num_items} items; add it to items.jsonl.gz or "
      f"remove the interaction ({unknown.size} such in all)."
    )
  return indices


def _read_text(file: pathlib.Path, catalog: ItemCatalog) -> Interactions:
  """Reads `user item item ...` lines."""
  import pyarrow as pa

  user_ids, lengths, item_ids = [], [], []
  for number, line in read_lines(file):
    user, *items = line.split()
    if not items:
      raise InputError(
        f"Line {number} of {str(file)!r} has user {user!r} and no items; "
        "remove it or add the user's items."
      )
    user_ids.append(user)
    lengths.append(len(items))
    item_ids.extend(items)
  if not user_ids:
    raise InputError(f"{str(file)!r} holds no users.")
  return Interactions(
    user_ids=tuple(user_ids),
    items=_item_indices(
      pa.array(item_ids, pa.string()), catalog, user_ids, np.asarray(lengths)
    ),
    offsets=interactions_lib.offsets_from_lengths(np.asarray(lengths)),
  )


def _read_parquet(file: pathlib.Path, catalog: ItemCatalog) -> Interactions:
  """Reads a table with one row a user."""
  import pyarrow as pa
  import pyarrow.compute as pc
  import pyarrow.parquet as pq

  try:
    table = pq.read_table(file).combine_chunks()
  except (pa.ArrowException, OSError) as error:
    reason = str(error).splitlines()[0]
    raise InputError(f"{str(file)!r} is no parquet file ({reason}).") from error
  missing = {"user_id", "item_ids"} - set(table.column_names)
  if missing:
    raise InputError(
      f"{str(file)!r} lacks column {sorted(missing)[0]!r}; it has "
      f"{', '.join(table.column_names)}."
    )
  if not table.num_rows:
    raise InputError(f"{str(file)!r} holds no users.")
  for name in table.column_names:
    if table[name].null_count:
      raise InputError(
        f"{str(file)!r} has {table[name].null_count} empty cells in column "
        f"{name!r}; fill or remove those rows."
      )
  users = table["user_id"].cast(pa.string()).to_pylist()
  lists = table["item_ids"]
  lengths = pc.list_value_length(lists).to_numpy()
  flat = pc.list_flatten(lists).combine_chunks()
  offsets = interactions_lib.offsets_from_lengths(lengths)
  times, absolute = None, "times" in table.column_names
  for column in ("times", "gap_seconds"):
    if column not in table.column_names:
      continue
    same = pc.list_value_length(table[column]).to_numpy() == lengths
    if not same.all():
      raise InputError(
        f"{str(file)!r}: `{column}` and `item_ids` of user "
        f"{users[int(np.argmin(same))]!r} differ in length."
      )
    times = pc.list_flatten(table[column]).to_numpy().astype(np.float64)
    if column == "gap_seconds":
      negative = np.flatnonzero(times < 0)
      if negative.size:
        user = np.searchsorted(offsets, negative[0], side="right") - 1
        raise InputError(
          f"Times run backwards: {str(file)!r} has a gap of "
          f"{times[negative[0]]:g} seconds for user {users[user]!r}; sort "
          "every user's items oldest first."
        )
      # Running sums within a user: exact, as whole seconds stay below 2^53.
      total = np.concatenate([[0.0], np.cumsum(times)])
      times = total[1:] - np.repeat(total[offsets[:-1]], lengths)
    break
  return Interactions(
    user_ids=tuple(users),
    items=_item_indices(flat, catalog, users, lengths),
    offsets=offsets,
    times=times,
    absolute_times=absolute,
  )


def _with_times(
  interactions: Interactions, file: pathlib.Path, catalog: ItemCatalog
) -> Interactions:
  """Takes the times of `file`, which must hold the same interactions."""
  timed = _read_parquet(file, catalog)
  if (
    timed.user_ids != interactions.user_ids
    or not np.array_equal(timed.offsets, interactions.offsets)
    or not np.array_equal(timed.items, interactions.items)
  ):
    raise InputError(
      f"{str(file)!r} and interactions.txt hold different interactions; "
      "remove the one that is out of date."
    )
  return timed


def write_folder(dataset: Dataset, path: str | os.PathLike[str]) -> None:
  """Writes a dataset as a folder, whole or not at all.

  Interactions go to `interactions.parquet`, embeddings are copied.

  Args:
    dataset: What to write.
    path: The folder to make; parents are made too.

  Raises:
    InputError: `path` exists and is not an empty folder.
  """
  import pyarrow as pa
  import pyarrow.parquet as pq

  target = pathlib.Path(path)
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise InputError(
      f"{str(path)!r} exists and is not an empty folder; nothing was written. "
      "Choose another path or remove it."
    )
  target.parent.mkdir(parents=True, exist_ok=True)
  draft = target.parent / f".{target.name}.{uuid.uuid4().hex}"
  draft.mkdir()
  try:
    write_catalog(dataset.catalog, draft / "items.jsonl.gz")
    data = dataset.interactions
    item_ids = np.asarray(dataset.catalog.item_ids, object)[data.items]
    columns = {
      "user_id": pa.array(data.user_ids, pa.string()),
      "item_ids": pa.ListArray.from_arrays(
        data.offsets.astype(np.int32), pa.array(item_ids, pa.string())
      ),
    }
    if data.times is not None:
      starts = np.repeat(data.times[data.offsets[:-1]], data.lengths)
      previous = np.concatenate([[0.0], data.times[:-1]])
      first = np.zeros(data.num_interactions, bool)
      first[data.offsets[:-1]] = True
      gaps = data.times - np.where(first, starts, previous)
      values = data.times if data.absolute_times else gaps
      columns["times" if data.absolute_times else "gap_seconds"] = (
        pa.ListArray.from_arrays(
          data.offsets.astype(np.int32), pa.array(values, pa.float64())
        )
      )
    pq.write_table(pa.table(columns), draft / "interactions.parquet")
    for name, file in dataset.embeddings.items():
      shutil.copyfile(file, draft / f"embeddings.{name}.npy")
    if target.exists():
      target.rmdir()
    draft.rename(target)
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def write_catalog(catalog: ItemCatalog, file: str | os.PathLike[str]) -> None:
  """Writes items as `read_catalog` reads them, gzipped."""
  with gzip.open(file, "wt", encoding="utf-8") as out:
    for item_id, text, title, path in zip(
      catalog.item_ids,
      catalog.texts,
      catalog.titles,
      catalog.categories,
      strict=True,
    ):
      parts = path.split(catalog_lib.PATH_SEPARATOR) if path else []
      record = {
        "item_id": item_id,
        "title": title,
        "categories": [parts] if parts else [],
        "text": text,
      }
      out.write(json.dumps(record, ensure_ascii=False) + "\n")
