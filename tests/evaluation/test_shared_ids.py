"""Expectations and draws where items share semantic IDs."""

import numpy as np
import pytest

from gr_jax.evaluation import metrics
from gr_jax.evaluation.shared_ids import Buckets
from gr_jax.sids.sid_catalog import SidCatalog


def make_catalog(codes, size=8):
  codes = np.array(codes, np.int32)[:, None]
  names = tuple(f"item{n}" for n in range(len(codes)))
  return SidCatalog(names, codes, (size,), 1, shares_ids=True)


# Items 0, 2, 3 share an ID, 1 and 5 another, 4 is alone.
CATALOG = make_catalog([2, 5, 2, 2, 0, 5])


def test_expectation_by_hand():
  buckets = Buckets.create(CATALOG)
  lists = np.array([[4, 0, 1], [4, 0, 1], [0, -1, 1]])
  found = buckets.expected_ranks(lists, np.array([3, 4, 5]))
  assert found.ranks.tolist() == [1, 0, 2]
  np.testing.assert_allclose(found.chances, [1 / 3, 1, 1 / 2])
  assert buckets.items_of(3).tolist() == [0, 2, 3]
  values = metrics.per_user(found.ranks, list_size=20, chances=found.chances)
  np.testing.assert_allclose(values["recall@5"], [1 / 3, 1, 1 / 2])
  np.testing.assert_allclose(values["mrr"], [1 / 6, 1, 1 / 6])
  means = metrics.summarize(
    found.ranks, list_size=20, chances=found.chances,
    user_mask=np.array([True, True, False]),
  )  # fmt: skip
  assert means["recall@1"] == 0.5
  assert means["recall@5"] == pytest.approx(2 / 3)


def test_removed_items_leave_the_draw():
  buckets = Buckets.create(CATALOG)
  lists = np.array([[4, 0, 1], [4, 0, 1], [4, 0, 1]])
  removed = np.array([[2, 4, 2], [1, 5, -1], [3, -1, -1]])
  np.testing.assert_array_equal(
    buckets.num_left(lists, removed), [[0, 2, 2], [1, 3, 0], [1, 2, 2]]
  )
  lists = np.array([[0, 1, -1], [4, 0, -1], [4, 0, 1]])
  found = buckets.expected_ranks(lists, np.array([3, 1, 3]), removed)
  # The target of the last two cannot be drawn.
  assert found.ranks.tolist()[0] == 0
  np.testing.assert_allclose(found.chances, [1 / 2, 0, 0])


def test_items_out_of_the_catalog_are_never_drawn():
  recommendable = np.array([True, True, False, True, True, False])
  buckets = Buckets.create(CATALOG, recommendable)
  lists = np.array([[0, 1]])
  found = buckets.expected_ranks(lists, np.array([3]))
  np.testing.assert_allclose(found.chances, [1 / 2])
  assert buckets.expected_ranks(lists, np.array([2])).chances.tolist() == [0]
  drawn = buckets.sample(lists, np.random.default_rng(0))
  assert drawn[0, 0] in (0, 3)
  assert drawn[0, 1] == 1


@pytest.mark.parametrize("remove", [False, True])
def test_draws_average_to_the_expectation(remove):
  """Many users with one list: the mean is off by its standard error."""
  rng = np.random.default_rng(1)
  catalog = make_catalog(rng.integers(0, 8, 40))
  num_users = 4000
  first = np.unique(catalog.codes[:, 0], return_index=True)[1]
  lists = np.tile(first, (num_users, 1))
  targets = rng.integers(0, 40, num_users)
  removed = None
  if remove:
    removed = rng.integers(-1, 40, (num_users, 5))
  buckets = Buckets.create(catalog)
  found = buckets.expected_ranks(lists, targets, removed)
  drawn = buckets.sample(lists, np.random.default_rng(2), removed)
  ranks = metrics.target_ranks(drawn, targets)
  np.testing.assert_array_equal(ranks[ranks >= 0], found.ranks[ranks >= 0])
  if removed is not None:
    both = drawn[:, :, None] == removed[:, None, :]
    assert not (both & (drawn >= 0)[:, :, None]).any()
  expected = metrics.per_user(found.ranks, list_size=20, chances=found.chances)
  sampled = metrics.per_user(ranks, list_size=20)
  for name in ("recall@5", "ndcg@10", "mrr"):
    gap = sampled[name].mean() - expected[name].mean()
    assert abs(gap) < 4 * sampled[name].std() / num_users**0.5, name
  again = buckets.sample(lists, np.random.default_rng(2), removed)
  np.testing.assert_array_equal(again, drawn)


def test_without_shared_ids_nothing_changes():
  rng = np.random.default_rng(3)
  catalog = make_catalog(rng.permutation(30), size=30)
  lists = np.stack([rng.permutation(30)[:10] for _ in range(50)])
  targets = rng.integers(0, 30, 50)
  found = Buckets.create(catalog).expected_ranks(lists, targets)
  want = metrics.target_ranks(lists, targets)
  np.testing.assert_array_equal(found.ranks, want)
  np.testing.assert_array_equal(found.chances, want >= 0)
