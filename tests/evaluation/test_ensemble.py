"""Several networks' lists as one."""

import numpy as np
import pytest

from gr_jax.evaluation import ensemble
from gr_jax.evaluation.evaluator import Predictions


def _lists(items, probabilities):
  items = np.array(items, np.int32)
  codes = np.where(items[..., None] >= 0, items[..., None] + [0, 100], -1)
  with np.errstate(divide="ignore"):
    scores = np.log(np.array(probabilities, np.float32))
  return Predictions(items, codes.astype(np.int32), scores)


def test_two_networks_by_hand():
  first = _lists([[4, 2, 7]], [[0.5, 0.3, 0.1]])
  second = _lists([[2, 9, -1]], [[0.4, 0.2, 0.9]])
  found = ensemble.join([first, second])
  # 2: (.3 + .4) / 2, 4: .5 / 2, 9: .2 / 2; what is no item is not listed.
  assert found.item_index.tolist() == [[2, 4, 9]]
  np.testing.assert_allclose(np.exp(found.scores), [[0.35, 0.25, 0.1]])
  assert found.codes.tolist() == [[[2, 102], [4, 104], [9, 109]]]


def test_lists_too_short_end_in_nothing():
  same = _lists([[3, -1, -1]], [[0.5, 0.0, 0.0]])
  found = ensemble.join([same, same, same])
  assert found.item_index.tolist() == [[3, -1, -1]]
  assert found.scores[0, 0] == pytest.approx(np.log(0.5))
  assert found.scores[0, 1:].tolist() == [-np.inf, -np.inf]
  assert found.codes[0, 1:].tolist() == [[-1, -1], [-1, -1]]


def test_it_is_the_mean_of_probabilities():
  draw = np.random.default_rng(0)
  networks = []
  for _ in range(4):
    items = np.argsort(draw.random((30, 50)), axis=1)[:, :20]
    # Far below what exp can represent, as many codes are.
    networks.append(_lists(items, np.ones((30, 20))))
    networks[-1].scores[:] = -np.sort(draw.uniform(0, 900, (30, 20)))
  found = ensemble.join(networks)
  for user in range(30):
    mean = np.full(50, -np.inf)
    for lists in networks:
      at = lists.item_index[user]
      mean[at] = np.logaddexp(mean[at], lists.scores[user])
    best = np.argsort(-mean, kind="stable")[:20]
    np.testing.assert_array_equal(found.item_index[user], best)
    np.testing.assert_allclose(
      found.scores[user], mean[best] - np.log(4), rtol=1e-6
    )
  np.testing.assert_array_equal(found.codes[..., 0], found.item_index)
  again = ensemble.join(networks[::-1])
  np.testing.assert_array_equal(found.item_index, again.item_index)
