"""Policies that move items to other last-level codes."""

import jax
import numpy as np
import pytest
import scipy.optimize

from gr_jax.core import checks
from gr_jax.sids import groups, placement, reassign
from gr_jax.sids.resolution import CollisionContext

SIZES = (3, 2, 24)
MOVERS = [reassign.NextNearest, reassign.RandomLastLevel, reassign.Sinkhorn]


def make(seed, num_items=60, sizes=SIZES):
  """Random codes that are the nearest by random distances."""
  rng = np.random.default_rng(seed)
  codes = rng.integers(0, sizes, (num_items, len(sizes)), dtype=np.int32)
  distances = rng.random((num_items, sizes[-1]), np.float32)
  # A few codes attract most items.
  distances[:, :3] *= 0.3
  codes[:, -1] = distances.argmin(axis=1)
  return codes, distances


def context(distances):
  return CollisionContext(last_level_distances=lambda rows: distances[rows])


def slow_knn(codes, distances, capacity, num_old=0):
  """One item after the other, in order of index."""
  held = {}
  for row in codes.tolist():
    held[tuple(row)] = min(capacity, held.get(tuple(row), 0) + 1)
  seen, result = {}, codes.copy()
  for i, row in enumerate(codes.tolist()):
    seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    if seen[tuple(row)] <= capacity or i < num_old:
      continue
    for code in np.argsort(distances[i], kind="stable"):
      target = (*row[:-1], int(code))
      if held.get(target, 0) < capacity:
        held[target] = held.get(target, 0) + 1
        result[i, -1] = code
        break
  return result


def test_knn_by_hand(key):
  """Three items on (0, 1): the first stays, the others find what is near."""
  codes = np.array([[0, 1], [0, 1], [0, 1], [0, 2], [1, 1]], np.int32)
  distances = np.array(
    [[9, 0, 9, 9], [9, 0, 1, 2], [5, 0, 1, 2], [9, 9, 0, 9], [9, 0, 9, 9]],
    np.float32,
  )
  found = reassign.NextNearest().resolve(
    codes, (2, 4), key=key, context=context(distances)
  )
  # Item 1 wants 2, which item 3 holds, and takes 3; item 2 is left with 0.
  np.testing.assert_array_equal(found.codes[:, 1], [1, 3, 0, 2, 1])
  np.testing.assert_array_equal(found.codes[:, 0], codes[:, 0])
  assert (found.num_moved, found.num_shared, found.largest_bucket) == (2, 3, 3)
  assert found.codebook_sizes == (2, 4)
  assert not found.shares_ids


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("capacity", [1, 2])
def test_knn_moves_like_a_loop(seed, capacity, key, monkeypatch):
  monkeypatch.setattr(placement, "_BLOCK_ELEMENTS", 40 + 200 * seed)
  codes, distances = make(seed)
  found = reassign.NextNearest(capacity=capacity).resolve(
    codes, SIZES, key=key, context=context(distances)
  )
  want = slow_knn(codes, distances, capacity)
  np.testing.assert_array_equal(found.codes, want)


@pytest.mark.parametrize("policy", MOVERS)
@pytest.mark.parametrize("capacity", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_capacity_holds_and_moves_are_few(policy, capacity, seed):
  key = jax.random.key(seed)
  codes, distances = make(seed, num_items=80)
  before = groups.group_rows(codes, SIZES)
  made = policy(capacity=capacity)
  found = made.resolve(codes, SIZES, key=key, context=context(distances))
  after = groups.group_rows(found.codes, SIZES)
  assert after.largest <= capacity
  assert found.shares_ids == (capacity > 1)
  np.testing.assert_array_equal(found.codes[:, :-1], codes[:, :-1])
  assert found.codes[:, -1].min() >= 0
  moved = found.codes[:, -1] != codes[:, -1]
  assert found.num_moved == moved.sum()
  least = np.maximum(before.counts - capacity, 0).sum()
  if policy is reassign.Sinkhorn:
    assert moved.sum() >= least
    assert not moved[before.counts[before.group] <= capacity].any()
  else:
    assert moved.sum() == least
  again = made.resolve(codes, SIZES, key=key, context=context(distances))
  np.testing.assert_array_equal(again.codes, found.codes)


def test_random_codes_follow_the_key(key):
  codes, _ = make(0)
  policy = reassign.RandomLastLevel()
  one = policy.resolve(codes, SIZES, key=key)
  other = policy.resolve(codes, SIZES, key=jax.random.key(1))
  assert not np.array_equal(one.codes, other.codes)


def test_random_codes_are_uniform_over_free_ones(key):
  """2000 pairs, one of each moves: to any of the 3 other codes alike."""
  codes = np.repeat(np.arange(2000, dtype=np.int32), 2)
  codes = np.stack([codes, np.ones_like(codes)], axis=1)
  found = reassign.RandomLastLevel().resolve(codes, (2000, 4), key=key)
  counts = np.bincount(found.codes[1::2, 1], minlength=4)
  assert counts[1] == 0
  standard_error = (2000 * 1 / 3 * 2 / 3) ** 0.5
  assert np.abs(counts[[0, 2, 3]] - 2000 / 3).max() < 4 * standard_error


@pytest.mark.parametrize("seed", range(4))
def test_sinkhorn_comes_near_the_best_assignment(seed, key):
  codes, distances = make(seed, num_items=70)
  found = reassign.Sinkhorn().resolve(
    codes, SIZES, key=key, context=context(distances)
  )
  counts = groups.group_rows(codes, SIZES)
  colliding = counts.counts[counts.group] > 1
  prefix = groups.group_rows(codes[:, :-1], SIZES[:-1]).group
  best = own = greedy = 0.0
  knn = slow_knn(codes, distances, 1)
  for p in np.unique(prefix[colliding]):
    rows = np.flatnonzero(colliding & (prefix == p))
    held = codes[~colliding & (prefix == p), -1]
    cost = distances[rows].astype(np.float64)
    cost[:, held] = 1e6
    chosen = scipy.optimize.linear_sum_assignment(cost)
    best += cost[chosen].sum()
    own += distances[rows, found.codes[rows, -1]].sum()
    greedy += distances[rows, knn[rows, -1]].sum()
  assert best <= own + 1e-4
  assert own <= 1.1 * best
  assert own < greedy


def test_a_plan_by_hand():
  """Both want code 0; the one that loses less by going elsewhere goes."""
  cost = np.array([[0.0, 1.0, 9.0], [0.0, 5.0, 9.0]], np.float32)
  free = np.array([[1, 1, 0]])
  cost = placement.transport_cost(
    cost, np.array([0]), free, epsilon=0.05, num_iters=200
  )
  plan = np.maximum(-cost, 0)
  np.testing.assert_allclose(plan[:, :2], [[0, 1], [1, 0]], atol=0.05)
  assert np.isposinf(cost[:, 2]).all()  # never a code without room


@pytest.mark.parametrize("policy", MOVERS)
@pytest.mark.parametrize("capacity", [1, 3])
def test_appended_items_move_and_old_ones_stay(policy, capacity, key):
  codes, distances = make(3, num_items=90)
  made = policy(capacity=capacity)
  old = made.resolve(codes[:60], SIZES, key=key, context=context(distances))
  new = made.append(
    old.codes, SIZES, codes[60:], key=key, context=context(distances[60:])
  )
  together = np.concatenate([old.codes, new])
  assert groups.group_rows(together, SIZES).largest <= capacity
  np.testing.assert_array_equal(new[:, :-1], codes[60:, :-1])
  if policy is reassign.NextNearest:
    rows = np.concatenate([old.codes, codes[60:]])
    want = slow_knn(rows, distances, capacity, num_old=60)
    np.testing.assert_array_equal(together, want)


@pytest.mark.parametrize("policy", MOVERS)
def test_too_many_items_are_refused_with_counts(policy, key):
  codes = np.array([[0, 0]] * 5 + [[1, 0]] * 4 + [[2, 1]], np.int32)
  near = context(np.zeros((10, 2), np.float32))
  message = (
    r"5 of 10 items under 2 prefixes do not fit: up to 5 items share all "
    r"codes but the last, whose 2 codes hold capacity=1 each. Set capacity "
    r"to at least 3"
  )
  with pytest.raises(checks.InputError, match=message):
    policy().resolve(codes, (3, 2), key=key, context=near)
  with pytest.raises(checks.InputError, match="1 of 2 new under 1 prefixes"):
    policy().append(
      np.array([[0, 0]], np.int32), (3, 2), codes[:2], key=key, context=near
    )
  policy(capacity=3).resolve(codes, (3, 2), key=key, context=near)


def test_what_cannot_work_is_refused(key):
  codes = np.array([[0, 0], [0, -1]], np.int32)
  with pytest.raises(checks.InputError, match="index 1 has no code at the las"):
    reassign.RandomLastLevel().resolve(codes, (1, 2), key=key)
  for policy, name in (
    (reassign.NextNearest, "knn"),
    (reassign.Sinkhorn, "sinkhorn"),
  ):
    with pytest.raises(checks.InputError, match=f"{name} needs the items'"):
      policy().resolve(codes[:1], (1, 2), key=key)
  with pytest.raises(checks.InputError, match="1 or more; got 0"):
    reassign.NextNearest(capacity=0)
  with pytest.raises(checks.InputError, match=r"got 0.001 and 30"):
    reassign.Sinkhorn(epsilon=0.001)
