import gzip
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gr_jax import data as data_lib
from gr_jax.core.checks import InputError
from gr_jax.data import splits
from gr_jax.data.readers import folder
from gr_jax.data.readers.folder import FolderData

ITEMS = (
  {"item_id": 1, "title": "Shampoo", "categories": [["Beauty", "Hair"]]},
  {"item_id": 2, "title": "Tent", "brand": None, "keywords": "two persons"},
  {"item_id": 3, "title": "", "description": "A pen.", "categories": []},
  {"item_id": 4, "text": "Ready made", "title": "Ink", "brand": "unused"},
)
USERS = "7 1 2 3\n\n9 4 1 2 1\n"


def write(path, items=ITEMS, users=USERS, plain=False):
  lines = "".join(
    (item if isinstance(item, str) else json.dumps(item)) + "\n"
    for item in items
  )
  if plain:
    (path / "items.jsonl").write_text(lines)
  else:
    (path / "items.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
  if users is not None:
    (path / "interactions.txt").write_text(users)
  return path


def write_table(path, name="sequences.parquet", **columns):
  table = {"user_id": [7, 9], "item_ids": [[1, 2, 3], [4, 1, 2, 1]]}
  pq.write_table(pa.table(table | columns), path / name)


@pytest.mark.parametrize("plain", [False, True])
def test_folder_by_hand(tmp_path, plain):
  data = folder.read_folder(write(tmp_path, plain=plain))
  assert data.counts == (2, 4, 7)
  assert data.catalog.item_ids == ("1", "2", "3", "4")
  assert data.catalog.titles == ("Shampoo", "Tent", "", "Ink")
  assert data.catalog.categories == ("Beauty > Hair", "", "", "")
  assert data.catalog.texts == (
    "Shampoo. Beauty > Hair",
    "Tent. two persons",
    "A pen.",
    "Ready made",
  )
  assert data.interactions.user_ids == ("7", "9")
  np.testing.assert_array_equal(data.interactions.history(1), [3, 0, 1, 0])
  assert data.interactions.times is None
  assert data.embeddings == {}


def test_gaps_become_times_of_each_user(tmp_path):
  write(tmp_path)
  write_table(tmp_path, gap_seconds=[[0, 5, 0], [0, 1, 2, 3]])
  data = folder.read_folder(tmp_path).interactions
  np.testing.assert_array_equal(data.times, [0, 5, 5, 0, 1, 3, 6])
  assert not data.absolute_times


@pytest.mark.parametrize("name", ["interactions.parquet", "sequences.parquet"])
def test_parquet_alone_suffices(tmp_path, name):
  write(tmp_path, users=None)
  write_table(tmp_path, name, times=[[1, 2, 3], [1, 1, 1, 9]])
  data = folder.read_folder(tmp_path).interactions
  assert data.absolute_times
  np.testing.assert_array_equal(data.items, [0, 1, 2, 3, 0, 1, 0])
  np.testing.assert_array_equal(data.times, [1, 2, 3, 1, 1, 1, 9])


def test_embeddings_are_found_by_name(tmp_path):
  write(tmp_path)
  np.save(tmp_path / "embeddings.minilm.f16.npy", np.zeros((4, 2)))
  np.save(tmp_path / "embeddings.own.npy", np.zeros((4, 2)))
  found = folder.read_folder(tmp_path).embeddings
  assert sorted(found) == ["minilm", "own"]
  assert found["own"] == str(tmp_path / "embeddings.own.npy")


def test_config_drops_short_users_and_checks_counts(tmp_path):
  write(tmp_path)
  config = FolderData(
    str(tmp_path), min_user_interactions=4, expected_counts=(1, 4, 4)
  )
  assert config.load().interactions.user_ids == ("9",)


@pytest.mark.parametrize("times", ["none", "gaps", "absolute"])
def test_a_written_folder_reads_back_equal(tmp_path, times):
  write(tmp_path)
  if times != "none":
    column = "times" if times == "absolute" else "gap_seconds"
    write_table(tmp_path, **{column: [[0, 5, 5], [0, 1, 2, 3]]})
  np.save(tmp_path / "embeddings.own.npy", np.eye(4))
  data = folder.read_folder(tmp_path)
  target = tmp_path / "new" / "copy"
  folder.write_folder(data, target)
  back = folder.read_folder(target)
  assert back.catalog == data.catalog
  one, two = data.interactions.to_arrays(), back.interactions.to_arrays()
  assert one.keys() == two.keys()
  for name, array in one.items():
    np.testing.assert_array_equal(array, two[name])
  np.testing.assert_array_equal(np.load(back.embeddings["own"]), np.eye(4))
  assert sorted(os.listdir(target.parent)) == ["copy"]


def test_nothing_is_overwritten(tmp_path):
  data = folder.read_folder(write(tmp_path))
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(InputError, match="exists and is not an empty folder"):
    folder.write_folder(data, tmp_path)
  assert sorted(os.listdir(tmp_path)) == before
  (tmp_path / "empty").mkdir()
  folder.write_folder(data, tmp_path / "empty")
  assert folder.read_folder(tmp_path / "empty").counts == data.counts


def test_a_failed_write_leaves_nothing(tmp_path):
  data = folder.read_folder(write(tmp_path))
  data = data_lib.Dataset(
    data.catalog, data.interactions, {"gone": str(tmp_path / "gone.npy")}
  )
  with pytest.raises(FileNotFoundError):
    folder.write_folder(data, tmp_path / "out" / "copy")
  assert os.listdir(tmp_path / "out") == []


ITEM = json.dumps(ITEMS[0])


@pytest.mark.parametrize(
  ("items", "message"),
  [
    ([ITEM, "{oops"], r"Line 2 of '.*items.jsonl.gz' is not JSON"),
    ([ITEM, "[1]"], r"Line 2 of .* is not a JSON object; got \[1\]"),
    (['{"title": "x"}'], r"Line 1 of .* needs an `item_id`.*; got None"),
    (['{"item_id": true, "title": "x"}'], "needs an `item_id`.*; got True"),
    (
      [ITEM, "", '{"item_id": 5}'],
      r"Line 3 of .*: item '5' has no text; give it a title",
    ),
    (['{"item_id": 1, "title": 5}'], "`title` must be a string; got 5"),
    (
      ['{"item_id": 1, "categories": ["Hair"]}'],
      r"`categories` must be a list of lists of names; got \['Hair'\]",
    ),
    ([ITEM, ITEM], "Item id '1' appears twice, as entries 1 and 2"),
    ([], "holds no items"),
  ],
)
def test_bad_items_are_refused(tmp_path, items, message):
  with pytest.raises(InputError, match=message):
    folder.read_folder(write(tmp_path, items=items))


@pytest.mark.parametrize(
  ("users", "message"),
  [
    ("7 1 2 3\n9\n", r"Line 2 of '.*interactions.txt' has user '9' and no"),
    (
      "7 1 2 3\n9 1 88 2\n4 99\n",
      r"User '9' chose item '88', which is not among the 4 items; .* \(2 such",
    ),
    ("7 1 2 3\n7 1 2 3\n", "User id '7' appears twice"),
    ("\n", "holds no users"),
    (None, r"has none of interactions.parquet, interactions.txt"),
  ],
)
def test_bad_interactions_are_refused(tmp_path, users, message):
  with pytest.raises(InputError, match=message):
    folder.read_folder(write(tmp_path, users=users))


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    (
      {"gap_seconds": [[0, 5, 0], [0, 1, -2, 3]]},
      r"Times run backwards: .* a gap of -2 seconds for user '9'",
    ),
    (
      {"times": [[0, 5, 6], [0, 3, 2, 3]]},
      "Times run backwards 1 times, first for user '9'",
    ),
    (
      {"gap_seconds": [[0, 5, 0], [0]]},
      "`gap_seconds` and `item_ids` of user '9' differ in length",
    ),
    (
      {"item_ids": [[1, 2, 3], [4, 1, 2, 2]]},
      "sequences.parquet' and interactions.txt hold different interactions",
    ),
    ({"item_ids": [[1, 2, 3], None]}, "1 empty cells in column 'item_ids'"),
    ({"item_ids": [[1, 2, 3], [5]]}, "User '9' chose item '5'"),
  ],
)
def test_bad_tables_are_refused(tmp_path, columns, message):
  write(tmp_path)
  write_table(tmp_path, **columns)
  with pytest.raises(InputError, match=message):
    folder.read_folder(tmp_path)


def test_damaged_files_are_refused(tmp_path):
  write(tmp_path)
  file = tmp_path / "items.jsonl.gz"
  file.write_bytes(file.read_bytes()[:-12])
  with pytest.raises(InputError, match="items.jsonl.gz' cannot be read after"):
    folder.read_folder(tmp_path)
  write(tmp_path)
  (tmp_path / "interactions.txt").write_bytes(b"7 1 \xff\n")
  with pytest.raises(InputError, match="interactions.txt' cannot be read"):
    folder.read_folder(tmp_path)
  (tmp_path / "interactions.parquet").write_bytes(b"no table")
  with pytest.raises(InputError, match="is no parquet file"):
    folder.read_folder(tmp_path)
  pq.write_table(pa.table({"user": [1]}), tmp_path / "interactions.parquet")
  with pytest.raises(InputError, match="lacks column 'item_ids'; it has user"):
    folder.read_folder(tmp_path)
  empty = pa.table({"user_id": [], "item_ids": []})
  pq.write_table(empty, tmp_path / "interactions.parquet")
  with pytest.raises(InputError, match="holds no users"):
    folder.read_folder(tmp_path)


def test_missing_places_are_refused(tmp_path):
  with pytest.raises(InputError, match="No dataset folder '.*none'; set data"):
    folder.read_folder(tmp_path / "none")
  with pytest.raises(InputError, match="has none of items.jsonl.gz"):
    folder.read_folder(tmp_path)
  with pytest.raises(InputError, match="No items file"):
    folder.read_catalog(tmp_path / "new_items.jsonl.gz")


def test_two_files_of_one_name_are_refused(tmp_path):
  for name in ("a.f16", "a"):
    np.save(tmp_path / f"embeddings.{name}.npy", np.zeros((4, 2)))
  with pytest.raises(InputError, match="Embeddings 'a' lie in"):
    folder.find_embeddings(tmp_path)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    (
      {"expected_counts": (2, 5, 8)},
      r"has 4 items \(published: 5\), 7 interactions \(published: 8\)",
    ),
    ({"expected_counts": (2, 5)}, r"must be \(users, items, interactions\)"),
    ({"min_user_interactions": 9}, "No user of 2 has min_user_interactions=9"),
  ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
  write(tmp_path)
  with pytest.raises(InputError, match=message):
    FolderData(str(tmp_path), **settings).load()


@pytest.mark.parametrize(
  ("name", "counts", "same_day"),
  [
    ("beauty", (22_363, 12_101, 198_502), 0.435),
    ("toys", (19_412, 11_924, 167_597), 0.490),
  ],
)
def test_real_data_has_the_published_counts(
  real_data_dir, name, counts, same_day
):
  path = os.path.join(real_data_dir, name)
  data = FolderData(path, expected_counts=counts).load()
  test = splits.leave_one_out(data.interactions).test
  later = splits.later_day(data.interactions, test)
  assert 1 - later.mean() == pytest.approx(same_day, abs=5e-4)
