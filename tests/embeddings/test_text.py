import dataclasses

import jax
import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import Dataset, Interactions, ItemCatalog
from gr_jax.data.synthetic import SyntheticData
from gr_jax.embeddings.table import EmbeddingTable
from gr_jax.embeddings.text import TfidfSvd


def dataset(texts):
  ids = tuple(f"i{n}" for n in range(len(texts)))
  nobody = Interactions((), np.zeros(0, np.int32), np.zeros(1, np.int64))
  return Dataset(ItemCatalog(ids, tuple(texts), ids, ("",) * len(ids)), nobody)


@pytest.fixture(scope="module")
def shop():
  return SyntheticData(num_items=240, num_users=1).load()


def cosine(x):
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  return x @ x.T


def test_texts_with_common_words_are_near(key):
  data = dataset(["red pen", "blue pen", "red tent", "big tent", "big tent"])
  table = TfidfSvd(dim=4).embed(data, key=key)
  assert table.vectors.dtype == np.float32
  near = cosine(table.vectors)
  assert near[3, 4] == pytest.approx(1, abs=1e-5)
  assert near[0, 1] > 0.3
  # "blue" occurs once and does not count: the second text is its pen alone.
  assert near[1, 4] == pytest.approx(0, abs=1e-5)


def test_full_rank_keeps_all_tfidf_similarities(shop, key):
  """As many directions as terms: the SVD is a rotation of TF-IDF."""
  from sklearn.feature_extraction import text

  vectorizer = text.TfidfVectorizer(
    sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", min_df=2
  )
  weights = vectorizer.fit_transform(shop.catalog.texts).toarray()
  rank = np.linalg.matrix_rank(weights)
  table = TfidfSvd(dim=int(rank)).embed(shop, key=key)
  np.testing.assert_allclose(
    table.vectors @ table.vectors.T, weights @ weights.T, atol=1e-4
  )


def test_same_key_same_vectors(shop, key):
  config = TfidfSvd(dim=16, normalization="whiten", output_dim=8)
  one = config.embed(shop, key=jax.random.key(1))
  two = config.embed(shop, key=jax.random.key(1))
  np.testing.assert_array_equal(one.vectors, two.vectors)
  assert one.embedding_dim == 8


@pytest.mark.parametrize("normalization", ["none", "standardize", "whiten"])
def test_known_texts_embed_as_before_from_saved_state(shop, key, normalization):
  config = TfidfSvd(dim=16, max_words=2, normalization=normalization)
  table = config.embed(shop, key=key)
  back = EmbeddingTable.from_arrays(table.to_arrays())
  some = shop.catalog.take(range(5, 25))
  again = dataclasses.replace(
    some, item_ids=tuple(f"new{n}" for n in range(20))
  )
  new = config.embed_new(back, again)
  np.testing.assert_allclose(new.vectors, table.vectors[5:25], atol=1e-5)
  grown = back.append(new)
  assert grown.num_items == 260


def test_unknown_words_are_reported(shop, key, caplog):
  config = TfidfSvd(dim=4)
  table = config.embed(shop, key=key)
  new = config.embed_new(table, dataset(["qqq zzz"]).catalog)
  np.testing.assert_array_equal(new.vectors, np.zeros((1, 4)))
  assert "1 of 1 item texts hold no known term" in caplog.text


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"dim": 0}, "Need dim=0, max_terms=50000, .* of at least 1"),
    ({"dim": 6}, r"dim=6 exceeds what 5 items with 3 terms span; set dim=3"),
    ({"min_items": 6}, "No term occurs in min_items=6 of the 5 item texts"),
    ({"normalization": "l1"}, "Unknown normalization 'l1'"),
  ],
)
def test_refusals(settings, message, key):
  data = dataset(["red pen", "blue pen", "red tent", "big tent", "tent"])
  with pytest.raises(InputError, match=message):
    TfidfSvd(**settings).embed(data, key=key)


def test_a_table_of_another_embedder_is_refused(shop, key):
  table = TfidfSvd(dim=4).embed(shop, key=key)
  foreign = dataclasses.replace(table, encoder={})
  with pytest.raises(InputError, match="were not made by tfidf_svd"):
    TfidfSvd(dim=4).embed_new(foreign, shop.catalog)
