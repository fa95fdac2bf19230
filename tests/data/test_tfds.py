"""The TFDS builders on fake raw files, downloaded from local paths."""

import shutil

import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import DATASETS
from gr_jax.data.readers import amazon2014, folder, movielens1m, tfds_data
from tests.data import raw_files

tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def amazon_raw(tmp_path, monkeypatch):
  """Fake files in place of the public ones, with counts to match."""
  path = raw_files.write_amazon(tmp_path / "raw")
  monkeypatch.setattr(amazon2014, "SOURCE", f"{path}/")
  monkeypatch.setattr(
    amazon2014, "PUBLISHED_COUNTS", {"Beauty": raw_files.AMAZON_COUNTS}
  )
  read = amazon2014.read_raw
  monkeypatch.setattr(
    amazon2014, "read_raw", lambda r, m, **_: read(r, m, min_interactions=2)
  )
  return path


def check_equal(one, two):
  assert one.catalog == two.catalog
  arrays, others = one.interactions.to_arrays(), two.interactions.to_arrays()
  assert arrays.keys() == others.keys()
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, others[name])


def test_amazon_comes_back_as_its_raw_files(amazon_raw, tmp_path):
  config = DATASETS["tfds"](
    builder="amazon2014", subset="beauty", data_dir=str(tmp_path / "tfds")
  )
  data = config.load()
  raw = DATASETS["amazon2014"](
    str(amazon_raw), min_interactions=2, check_published=False
  )
  check_equal(data, raw.load())
  # Prepared once, it needs the raw files no more.
  shutil.rmtree(amazon_raw)
  check_equal(config.load(), data)
  folder.write_folder(data, tmp_path / "folder")
  check_equal(folder.read_folder(tmp_path / "folder"), data)


def test_amazon_splits_by_hand(amazon_raw, tmp_path):
  from gr_jax.data.readers import tfds_amazon2014

  builder = tfds_amazon2014.Amazon2014(config="beauty", data_dir=tmp_path / "t")
  builder.download_and_prepare()
  # Users (u2: A1 A2 A3), (u1: A1 A3 A2); items A1 A2 A3 are 0 1 2.
  want = {
    "train": [([], 0), ([], 0)],
    "validation": [([0], 1), ([0], 2)],
    "test": [([0, 1], 2), ([0, 2], 1)],
  }
  for split, examples in want.items():
    rows = list(tfds.as_numpy(builder.as_dataset(split=split)))
    assert [(r["history"].tolist(), r["target"]) for r in rows] == examples
    assert [r["user_id"] for r in rows] == [b"u2", b"u1"]
  assert rows[0]["target_seconds"] == 5 * 86_400


def test_downloads_are_verified_by_registered_checksums(
  amazon_raw, tmp_path, monkeypatch
):
  from etils import epath
  from tensorflow_datasets.core.download import download_manager

  from gr_jax.data.readers import tfds_amazon2014, tfds_sequences

  builder = tfds_amazon2014.Amazon2014
  configs = [c for c in builder.BUILDER_CONFIGS if c.subset == "Beauty"]
  monkeypatch.setattr(builder, "BUILDER_CONFIGS", configs)
  monkeypatch.setattr(builder, "code_path", epath.Path(tmp_path / "a.py"))
  tfds_sequences.record_checksums(builder, str(tmp_path / "first"))
  checksums = tmp_path / "checksums.tsv"
  assert checksums.read_text().count("\n") == 2
  # TFDS reads the file once a process.
  known = tfds.core.download.checksums.load_url_infos(checksums)
  monkeypatch.setattr(builder, "url_infos", known)
  builder(config="beauty", data_dir=tmp_path / "same").download_and_prepare()
  raw_files.write_amazon(amazon_raw, metadata=raw_files.METADATA[:3])
  changed = builder(config="beauty", data_dir=tmp_path / "changed")
  with pytest.raises(download_manager.NonMatchingChecksumError):
    changed.download_and_prepare()


def test_other_counts_than_published_are_refused(
  amazon_raw, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    amazon2014, "PUBLISHED_COUNTS", {"Beauty": (22_363, 12_101, 198_502)}
  )
  with pytest.raises(InputError, match=r"2 users \(published: 22,363\)"):
    tfds_data.TfdsData(data_dir=str(tmp_path / "tfds")).load()


def test_movielens_comes_back_as_its_raw_files(tmp_path, monkeypatch):
  path = raw_files.write_movielens(tmp_path / "zip" / "ml-1m")
  archive = shutil.make_archive(str(tmp_path / "ml-1m"), "zip", path.parent)
  monkeypatch.setattr(movielens1m, "SOURCE", archive)
  monkeypatch.setattr(
    movielens1m, "PUBLISHED_CORE_COUNTS", raw_files.MOVIELENS_COUNTS
  )
  read = movielens1m.read_raw
  monkeypatch.setattr(
    movielens1m,
    "read_raw",
    lambda r, m, **_: read(r, m, min_interactions=2),
  )
  data = tfds_data.TfdsData(
    builder="movielens1m", subset="core", data_dir=str(tmp_path / "tfds")
  ).load()
  raw = movielens1m.MovieLens1MData(
    str(path), min_interactions=2, check_published=False
  )
  check_equal(data, raw.load())


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"builder": "amazon"}, "Unknown TFDS builder 'amazon'; known: amazon2014"),
    ({"subset": "beaty"}, "Unknown subset of amazon2014 'beaty'.*'beauty'"),
  ],
)
def test_unknown_names_are_refused(settings, message):
  with pytest.raises(InputError, match=message):
    tfds_data.TfdsData(**settings).load()


def test_missing_tfds_is_explained(monkeypatch):
  def refuse(name):
    raise ImportError("No module named 'tensorflow_datasets'")

  monkeypatch.setattr(tfds_data.importlib, "import_module", refuse)
  with pytest.raises(InputError, match="needs tensorflow-datasets .* install"):
    tfds_data.TfdsData().load()
