import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import Dataset, Interactions, ItemCatalog
from gr_jax.embeddings.files import Precomputed

VECTORS = np.array([[1.0, 2.0], [3.0, 6.0]])


@pytest.fixture
def dataset(tmp_path):
  """Two items with the vectors "one" and "two"."""
  nobody = Interactions((), np.zeros(0, np.int32), np.zeros(1, np.int64))
  files = {name: str(tmp_path / f"{name}.npy") for name in ("one", "two")}
  np.save(files["one"], VECTORS.astype(np.float16))
  np.save(files["two"], VECTORS * 10)
  ids = ("a", "b")
  return Dataset(ItemCatalog(ids, ids, ids, ("", "")), nobody, files)


def test_float16_becomes_float32(dataset, key):
  table = Precomputed(vectors="one").embed(dataset, key=key)
  assert table.vectors.dtype == np.float32
  np.testing.assert_array_equal(table.vectors, VECTORS)
  assert table.item_ids == ("a", "b")


def test_the_only_file_needs_no_name_and_a_path_wins(dataset, key):
  two = dataset.embeddings["two"]
  alone = Dataset(dataset.catalog, dataset.interactions, {"two": two})
  for config, data in (
    (Precomputed(), alone),
    (Precomputed(vectors="one", path=two), dataset),
  ):
    table = config.embed(data, key=key)
    np.testing.assert_array_equal(table.vectors, VECTORS * 10)


def test_new_items_come_from_a_file_of_their_own(dataset, key, tmp_path):
  config = Precomputed(vectors="one", normalization="center")
  table = config.embed(dataset, key=key)
  path = str(tmp_path / "new.npy")
  np.save(path, np.array([[5.0, 5.0]]))
  new = config.embed_new(
    table, ItemCatalog(("c",), ("c",), ("c",), ("",)), path=path
  )
  np.testing.assert_array_equal(new.vectors, [[3.0, 1.0]])
  with pytest.raises(InputError, match="1 new items need vectors of their own"):
    config.embed_new(table, ItemCatalog(("c",), ("c",), ("c",), ("",)))


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (np.ones((3, 2)), "There are 3 embedding rows for 2 items"),
    (np.array([[1.0, 2.0], [np.nan, 1.0]]), "of item 'b' \\(row 1\\)"),
    (np.ones((2, 2), np.int64), r"a float matrix \[N, D\]; got int64"),
    (np.ones(2), r"a float matrix \[N, D\]; got float64 \(2,\)"),
  ],
)
def test_bad_arrays_are_refused(dataset, key, tmp_path, array, message):
  path = str(tmp_path / "bad.npy")
  np.save(path, array)
  with pytest.raises(InputError, match=message):
    Precomputed(path=path).embed(dataset, key=key)


def test_bad_names_and_files_are_refused(dataset, key, tmp_path):
  def embed(data=dataset, **settings):
    with pytest.raises(InputError) as error:
      Precomputed(**settings).embed(data, key=key)
    return str(error.value)

  assert "Unknown embeddings file of the data set 'three'" in embed(
    vectors="three"
  )
  assert "has vectors one, two; set embedding.vectors" in embed()
  bare = Dataset(dataset.catalog, dataset.interactions)
  assert "has no embeddings.*.npy; set embedding.path" in embed(bare)
  assert "No embeddings file 'none.npy'" in embed(path="none.npy")
  assert "output_dim=3 needs" in embed(vectors="one", output_dim=3)
  text = tmp_path / "text.npy"
  text.write_text("1 2 3")
  assert "is no .npy file of numbers" in embed(path=str(text))
