"""The encoder package is replaced by a stand-in; no model is loaded."""

import sys
import types

import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data.synthetic import SyntheticData
from gr_jax.embeddings import EMBEDDERS

Embedder = EMBEDDERS["sentence_transformers"]


class Encoder:
  """Embeds a text as its length and its number of commas."""

  loaded: list[str] = []

  def __init__(self, source):
    if "missing" in source:
      raise OSError("missing is not a local folder\nand more lines")
    self.loaded.append(source)

  def encode(self, texts, *, batch_size, show_progress_bar):
    assert len(texts) <= batch_size
    assert not show_progress_bar
    return np.array([[len(t), t.count(",")] for t in texts], np.float16)


@pytest.fixture
def package(monkeypatch):
  module = types.ModuleType("sentence_transformers")
  module.SentenceTransformer = Encoder
  monkeypatch.setitem(sys.modules, "sentence_transformers", module)


@pytest.fixture(scope="module")
def shop():
  return SyntheticData(num_items=60, num_users=1).load()


def test_every_text_is_encoded_in_order(package, shop, key):
  config = Embedder(model="some/model", batch_size=7)
  table = config.embed(shop, key=key)
  assert table.vectors.dtype == np.float32
  np.testing.assert_array_equal(
    table.vectors[:, 0], [len(text) for text in shop.catalog.texts]
  )
  new = config.embed_new(table, shop.catalog.take([3, 1]))
  np.testing.assert_array_equal(new.vectors, table.vectors[[3, 1]])
  assert Encoder.loaded[-1] == "some/model"


def test_models_lie_in_folders_and_packages(
  package, shop, key, tmp_path, monkeypatch
):
  Embedder(model=str(tmp_path)).embed(shop, key=key)
  assert Encoder.loaded[-1] == str(tmp_path)
  (tmp_path / "my_model").mkdir()
  (tmp_path / "my_model" / "__init__.py").touch()
  monkeypatch.syspath_prepend(tmp_path)
  Embedder(model="my_model").embed(shop, key=key)
  assert Encoder.loaded[-1] == str(tmp_path / "my_model")


def test_a_missing_model_is_refused(package, shop, key):
  with pytest.raises(InputError, match="'missing/x' cannot be loaded") as error:
    Embedder(model="missing/x").embed(shop, key=key)
  assert "\n" not in str(error.value)


def test_a_missing_package_is_explained(shop, key, monkeypatch):
  monkeypatch.setitem(sys.modules, "sentence_transformers", None)
  with pytest.raises(InputError, match=r"install it with `pip install -e"):
    Embedder().embed(shop, key=key)
