import numpy as np
import pytest

from gr_jax.core import artifact
from gr_jax.core.checks import InputError
from gr_jax.data.catalog import ItemCatalog
from gr_jax.embeddings import table as table_lib
from gr_jax.embeddings.table import EmbeddingTable


def catalog(*ids):
  return ItemCatalog(ids, ids, ids, ("",) * len(ids))


def make(ids="abc", vectors=None, **settings):
  settings = {"normalization": "center", "output_dim": 0} | settings
  if vectors is None:
    vectors = np.arange(2 * len(ids), dtype=np.float32).reshape(-1, 2)
  return table_lib.make_table(catalog(*ids), vectors, **settings)


def test_table_by_hand():
  table = make()
  assert (table.num_items, table.embedding_dim) == (3, 2)
  np.testing.assert_array_equal(table.vectors, [[-2, -2], [0, 0], [2, 2]])


def test_new_items_are_appended_with_the_old_statistics():
  table = make()
  new = table.embed_raw(["d"], np.array([[3.0, 3.0]], np.float32))
  np.testing.assert_array_equal(new.vectors, [[1, 0]])
  grown = table.append(new)
  assert grown.item_ids == ("a", "b", "c", "d")
  np.testing.assert_array_equal(grown.vectors[:3], table.vectors)
  np.testing.assert_array_equal(grown.vectors[3:], new.vectors)


def test_artifact_round_trip(tmp_path):
  table = make(encoder={"terms/bytes": np.zeros(3, np.uint8)})
  saved = artifact.save(
    tmp_path / "embeddings",
    kind="embeddings",
    config={},
    arrays=table.to_arrays(),
  )
  loaded = artifact.load(saved.path, kind="embeddings")
  back = EmbeddingTable.from_arrays(loaded.arrays)
  assert back.item_ids == table.item_ids
  assert back.normalization.kind == "center"
  np.testing.assert_array_equal(back.vectors, table.vectors)
  np.testing.assert_array_equal(back.encoder["terms/bytes"], np.zeros(3))
  raw = np.ones((1, 2), np.float32)
  np.testing.assert_array_equal(
    back.embed_raw(["d"], raw).vectors, table.embed_raw(["d"], raw).vectors
  )


def test_nan_anywhere_is_found():
  for row, column in np.ndindex(3, 2):
    for value in (np.nan, np.inf, -np.inf):
      vectors = np.ones((3, 2), np.float32)
      vectors[row, column] = value
      with pytest.raises(
        InputError, match=rf"1 embeddings hold NaN .*item '{'abc'[row]}'"
      ):
        make(vectors=vectors)
  # Opposite infinities do not cancel, large values do not overflow.
  with pytest.raises(InputError, match="1 embeddings hold NaN"):
    make("a", np.array([[np.inf, -np.inf]], np.float32))
  make("ab", np.full((2, 9), 3e38, np.float32), normalization="none")


@pytest.mark.parametrize(
  ("run", "message"),
  [
    (
      lambda: make("ab", np.ones((3, 2), np.float32)),
      r"There are 3 embedding rows for 2 items",
    ),
    (
      lambda: table_lib.check_rows("ab", np.ones((2, 3))),
      r"float32 matrix \[N, D\]; got float64 \(2, 3\)",
    ),
    (
      lambda: table_lib.check_rows("ab", np.ones((2, 0), np.float32)),
      r"got float32 \(2, 0\)",
    ),
    (lambda: make().append(make("c")), "Item id 'c' appears twice"),
    (
      lambda: make().append(make("d", np.ones((1, 5), np.float32))),
      "New embeddings have width 5, the table has 2",
    ),
    (
      lambda: make().embed_raw(["d"], np.ones((1, 5), np.float32)),
      "width 5, the normalization was fitted on width 2",
    ),
    (
      lambda: make(normalization="none").embed_raw(
        ["d", "e"], np.ones((1, 2), np.float32)
      ),
      "There are 1 embedding rows for 2 items",
    ),
    (
      lambda: make("abc").check_matches(catalog("a", "b")),
      "The embeddings cover 3 items, the catalog has 2",
    ),
    (
      lambda: make("abc").check_matches(catalog("a", "c", "b")),
      "Row 1 of the embeddings is item 'b', in the catalog it is 'c'",
    ),
  ],
)
def test_refusals(run, message):
  with pytest.raises(InputError, match=message):
    run()


def test_matching_catalog_passes():
  make().check_matches(catalog("a", "b", "c"))
