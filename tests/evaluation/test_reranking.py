"""Reranking: features by hand, weights against what made the data."""

import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import splits
from gr_jax.data.interactions import Interactions, offsets_from_lengths
from gr_jax.evaluation import reranking
from gr_jax.evaluation.scorers import Histories

# Training parts, with the last two of each user held out: 0 1 2 | 0 1 3 | 2 1.
HISTORIES = [[0, 1, 2, 3, 4], [0, 1, 3, 0, 2], [2, 1, 4, 1]]
VECTORS = np.array(
  [[1, 0], [0.6, 0.8], [0, 1], [-1, 0], [0.8, 0.6]], np.float32
)


def _histories(rows):
  lengths = np.array([len(row) for row in rows])
  items = np.concatenate(rows).astype(np.int32)
  return Histories(items, offsets_from_lengths(lengths))


@pytest.fixture
def evidence():
  lengths = np.array([len(h) for h in HISTORIES])
  interactions = Interactions(
    user_ids=("a", "b", "c"),
    items=np.concatenate(HISTORIES).astype(np.int32),
    offsets=offsets_from_lengths(lengths),
  )
  split = splits.leave_one_out(interactions)
  return reranking.Evidence.fit(interactions, split, VECTORS)


def test_features_by_hand(evidence):
  items = np.array([[1, 3, 0, -1], [2, 1, 4, 0]], np.int32)
  scores = np.array([[-1.0, -2, -3, -np.inf], [-1, -2, -3, -4]])
  histories = _histories([[2, 0], [1]])
  found = evidence.features(histories, items, scores)
  # 0 -> 1 twice; users who chose both of 0, 1, 2, 3: {a, b}, {a, b, c},
  # {a, c}, {b}, so 0 and 1 share 2 of sqrt(2 x 3), and so on.
  knn_10 = 2 / np.sqrt(6) + 0.7 * 2 / np.sqrt(6)  # 1 by 0, and by 2, older
  want = [
    [-1, np.log(3), np.sqrt(knn_10), 0.6, np.log(2), 0.8],
    [-2, 0, np.sqrt(1 / np.sqrt(2)), 0, 0, 0],
    [-3, 0, np.sqrt(0.7 * 0.5), 0, 0, 0],  # the newest item: no text
    [0, 0, 0, 0, 0, 0],
  ]
  np.testing.assert_allclose(found[0], want, atol=1e-6)
  # One item alone: nothing came before it.
  want = [-1, np.log(2), np.sqrt(2 / np.sqrt(6)), 0.8, 0, 0]
  np.testing.assert_allclose(found[1, 0], want, atol=1e-6)
  np.testing.assert_allclose(found[1, :, 4:], 0)


def test_features_do_not_depend_on_the_chunks(evidence, monkeypatch):
  rng = np.random.default_rng(0)
  items = rng.integers(-1, 5, (7, 4)).astype(np.int32)
  histories = _histories(
    [rng.integers(0, 5, rng.integers(1, 5)) for _ in range(7)]
  )
  want = evidence.features(histories, items, np.zeros((7, 4)))
  monkeypatch.setattr(reranking, "_CHUNK_ELEMENTS", 1)
  found = evidence.features(histories, items, np.zeros((7, 4)))
  np.testing.assert_array_equal(found, want)


def test_weights_that_made_the_choices_are_found():
  rng = np.random.default_rng(1)
  features = rng.normal(size=(20_000, 6, len(reranking.FEATURES)))
  features[..., 2] *= 10.0
  features[..., 4] = 3.0  # tells nothing
  weights = np.array([1.0, -0.5, 0.1, 0.0, 0.0, 2.0])
  items = np.tile(np.arange(6, dtype=np.int32), (20_000, 1))
  items[:, 5] = -1  # never chosen
  gumbel = rng.gumbel(size=(20_000, 5))
  targets = np.argmax((features @ weights)[:, :5] + gumbel, axis=1)
  targets[::10] = 9  # not listed
  found = reranking.fit_weights(features, items, targets)
  np.testing.assert_allclose(found, weights, atol=0.05)
  assert found[4] == 0


def test_a_list_is_put_in_order():
  items = np.array([[7, 8, -1, 9], [4, -1, 5, 6], [-1, -1, -1, -1]], np.int32)
  features = np.zeros((3, 4, 6))
  features[0, :, 0] = [1, 3, 100, 2]
  weights = np.array([1.0, 0, 0, 0, 0, 0])
  ordered, scores = reranking.rerank(features, items, weights)
  # Equal scores keep their order, no item comes last.
  assert ordered.tolist() == [[8, 9, 7, -1], [4, 5, 6, -1], [-1] * 4]
  np.testing.assert_allclose(np.exp(scores).sum(axis=1), [1, 1, 0])
  np.testing.assert_allclose(scores[1, :3], -np.log(3))
  assert np.isneginf(scores[:, 3]).all()


def test_lists_without_any_target_are_refused():
  with pytest.raises(InputError, match="None of 2 validation lists holds"):
    reranking.fit_weights(
      np.zeros((2, 3, 6)), np.zeros((2, 3), np.int32), np.array([1, 2])
    )


def test_lists_are_joined_by_hand():
  items = np.array([[7, 8, -1], [-1, -1, -1]], np.int32)
  features = np.zeros((2, 3, 6))
  features[0, :2, 0] = [-1, -2]
  features[0, :2, 3] = [0.5, 0.25]
  others = np.array([[8, 5, -1], [4, 3, 2]], np.int32)
  other_features = np.full((2, 3, 6), 0.75)
  both, found = reranking.joined(items, features, others, other_features)
  assert both.tolist() == [[7, 8, -1, -1, 5, -1], [-1, -1, -1, 4, 3, 2]]
  assert found[0, [0, 1, 4], 0].tolist() == [-1, -2, -2]
  assert found[0, :, 3].tolist() == [0.5, 0.25, 0, 0, 0.75, 0]
  assert found[1, 3:, 0].tolist() == [0, 0, 0]
