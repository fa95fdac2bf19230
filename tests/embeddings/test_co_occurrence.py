import dataclasses

import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import Dataset, Interactions, ItemCatalog, splits
from gr_jax.embeddings import co_occurrence
from gr_jax.embeddings.co_occurrence import TextAndCoOccurrence

NUM_ITEMS = 9


def _interactions(histories):
  lengths = [len(history) for history in histories]
  return Interactions(
    tuple(map(str, range(len(histories)))),
    np.concatenate(histories).astype(np.int32),
    np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
  )


@pytest.fixture
def dataset(tmp_path):
  """Items 0-3 are chosen together, and 4-7; nobody trains on item 8.

  The text says nothing of it: item n points along axis n % 4, item 8 along
  that of items 1 and 5.
  """
  histories = [[0, 1, 2, 3, 0, 4], [4, 5, 6, 7, 4, 8], [7, 6, 5, 4, 7, 2, 3]]
  text = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3, 1]] + 0.01
  path = str(tmp_path / "text.npy")
  np.save(path, text.astype(np.float32))
  ids = tuple(map(str, range(NUM_ITEMS)))
  catalog = ItemCatalog(ids, ids, ids, ("",) * NUM_ITEMS)
  return Dataset(catalog, _interactions(histories), {"text": path})


def test_counts_by_hand():
  interactions = _interactions([[0, 1, 2, 0, 1], [2, 0, 1]])
  counts = co_occurrence.co_occurrences(
    interactions,
    splits.leave_one_out(interactions),
    num_items=3,
    window=2,
  ).toarray()
  # Training parts: 0 1 2, and 2 alone.
  np.testing.assert_array_equal(
    counts, [[0.0, 1.0, 0.5], [1.0, 0.0, 1.0], [0.5, 1.0, 0.0]]
  )


def test_held_out_items_change_nothing(dataset, key):
  config = TextAndCoOccurrence(co_occurrence_dim=3)
  items = dataset.interactions.items.copy()
  ends = dataset.interactions.offsets[1:]
  items[ends - 1], items[ends - 2] = 3, 6
  other = dataclasses.replace(
    dataset, interactions=dataclasses.replace(dataset.interactions, items=items)
  )
  np.testing.assert_array_equal(
    config.embed(dataset, key=key).vectors, config.embed(other, key=key).vectors
  )


def test_what_is_chosen_together_lies_together(dataset, key):
  config = TextAndCoOccurrence(co_occurrence_dim=3, weight=2.0)
  table = config.embed(dataset, key=key)
  text, rows = table.vectors[:, :4], table.vectors[:, 4:]
  np.testing.assert_allclose(text[1], [0.01, 1.01, 0.01, 0.01], rtol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 2.0, rtol=1e-5)
  cosine = rows @ rows.T / 4
  together = cosine[:4, :4].min(), cosine[4:8, 4:8].min()
  assert min(together) > cosine[:4, 4:8].max()


def test_items_without_history_follow_their_text(dataset, key, tmp_path):
  config = TextAndCoOccurrence(co_occurrence_dim=3)
  table = config.embed(dataset, key=key)
  path = str(tmp_path / "new.npy")
  np.save(path, np.ones((1, 4), np.float32))
  one = ItemCatalog(("new",), ("x",), ("x",), ("",))
  new = config.embed_new(table, one, path=path)
  # As near to all texts: the mean of all rows, 10 neighbors being asked for.
  mean = table.vectors[:, 4:].mean(axis=0)
  np.testing.assert_allclose(
    new.vectors[0, 4:], mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6
  )
  assert np.isfinite(table.vectors[8]).all()
  np.testing.assert_allclose(np.linalg.norm(table.vectors[8, 4:]), 1, rtol=1e-5)


def test_refusals(dataset, key):
  with pytest.raises(InputError, match="co_occurrence_dim=9 must be below"):
    TextAndCoOccurrence(co_occurrence_dim=9).embed(dataset, key=key)
  with pytest.raises(InputError, match="window of 1 or more"):
    TextAndCoOccurrence(window=0)


def test_baselines_see_the_text_alone(dataset, key):
  config = TextAndCoOccurrence(co_occurrence_dim=3)
  table = config.embed(dataset, key=key)
  text = super(TextAndCoOccurrence, config).embed(dataset, key=key)
  np.testing.assert_array_equal(
    co_occurrence.text_vectors(config, table), text.vectors
  )
  assert co_occurrence.text_vectors(None, text) is text.vectors
