"""Refits: what changed, and names that keep most IDs."""

import itertools

import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.sids import churn, collisions
from gr_jax.sids.resolution import CollisionContext
from gr_jax.sids.sid_catalog import SidCatalog


def catalog(ids, codes, sizes, num_semantic_levels=2):
  return SidCatalog.from_levels(
    tuple(ids),
    np.array(codes, np.int32),
    sizes,
    num_semantic_levels=num_semantic_levels,
  )


def test_report_by_hand():
  old = catalog(
    "abcd", [[0, 0, 0], [0, 1, 0], [1, -1, 0], [1, 1, 1]], (2, 2, 2)
  )
  new = catalog("xdcb", [[0, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]], (2, 2, 2))
  found = churn.report(old, new)
  assert (found.num_common, found.num_added, found.num_removed) == (3, 1, 1)
  # d stays; c gains a middle code; b changes its first code alone.
  assert found.id_changed == pytest.approx(2 / 3)
  assert found.code_changed == pytest.approx((1 / 3, 1 / 3, 0))
  assert found.prefix_changed == pytest.approx((1 / 3, 2 / 3, 2 / 3))


def test_matching_by_hand():
  old = np.array([[0, 0], [0, 0], [0, 1], [1, 1], [1, 1]], np.int32)
  new = np.array([[2, 1], [2, 1], [2, 0], [0, 1], [1, 1]], np.int32)
  first, second = churn.match_codes(old, new, (4, 2))
  # 2 holds what 0 held. Of 0 and 1, which share what 1 held, one becomes 1:
  # names 0 and 1 are gone, so the other takes the lowest that nobody wants.
  assert first[2] == 0
  assert sorted(first[:2].tolist()) == [1, 2]
  assert first[3] == 3
  # Level 1: of the items still on their old code, two say 1 -> 0 and one
  # 0 -> 1; the two that say 1 -> 1 have at most one voice.
  assert second.tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(6))
def test_no_other_names_keep_more_items(seed):
  rng = np.random.default_rng(seed)
  sizes = (4, 3)
  old = rng.integers(0, sizes, (60, 2), dtype=np.int32)
  new = np.where(
    rng.random((60, 2)) < 0.5, old, rng.integers(0, sizes, (60, 2))
  ).astype(np.int32)
  names = churn.match_codes(old, new, sizes)
  kept = churn.rename(new, names) == old
  for level in range(2):
    counts = kept[:, 0] if level else np.ones(60, bool)
    best = max(
      (counts & (np.array(order)[new[:, level]] == old[:, level])).sum()
      for order in itertools.permutations(range(sizes[level]))
    )
    assert (counts & kept[:, level]).sum() == best
    assert sorted(names[level].tolist()) == list(range(sizes[level]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("hierarchical", [True, False])
def test_mere_renaming_is_undone(seed, hierarchical):
  rng = np.random.default_rng(seed)
  sizes = (16, 300, 7)
  old = rng.integers(0, sizes, (2000, 3), dtype=np.int32)
  old[::5, 1] = -1
  shuffled = [rng.permutation(size).astype(np.int32) for size in sizes]
  new = churn.rename(old, shuffled)
  names = churn.match_codes(old, new, sizes, hierarchical=hierarchical)
  np.testing.assert_array_equal(churn.rename(new, names), old)
  back = churn.original_names(names)
  np.testing.assert_array_equal(churn.rename(old, back), new)


def test_parallel_levels_are_matched_alone():
  # No item keeps its first code, yet the second level has clear names.
  old = np.array([[0, 0], [1, 0], [0, 1], [1, 1]] * 3, np.int32)
  new = np.array([[0, 1], [0, 1], [1, 0], [1, 0]] * 3, np.int32)
  names = churn.match_codes(old, new, (2, 2), hierarchical=False)
  assert names[1].tolist() == [1, 0]


def test_items_that_lost_their_prefix_decide_only_ties():
  # Four items stay under 0 and swap their second codes. Six items of three
  # first codes now share one: two of them at most can keep their ID.
  stay = [[0, 0], [0, 0], [0, 1], [0, 1]]
  merge = [[first, code] for first in (1, 2, 3) for code in (0, 1)]
  old = np.array(stay + merge, np.int32)
  new = old.copy()
  new[:4, 1] = 1 - new[:4, 1]
  new[4:, 0] = 1
  assert churn.match_codes(old, new, (4, 2))[1].tolist() == [1, 0]
  alone = churn.match_codes(old, new, (4, 2), hierarchical=False)
  assert alone[1].tolist() == [0, 1]


@pytest.mark.parametrize("name", sorted(collisions.POLICIES))
@pytest.mark.parametrize("seed", range(3))
def test_unchanged_items_keep_their_whole_id(name, seed, key):
  rng = np.random.default_rng(seed)
  sizes = (3, 2, 40)
  policy = collisions.POLICIES[name]()
  distances = rng.random((120, 40), np.float32)
  asked = []

  def distances_of(rows):
    asked.extend(rows.tolist())
    return distances[rows]

  context = CollisionContext(last_level_distances=distances_of)
  old_codes = rng.integers(0, (3, 2, 9), (120, 3), dtype=np.int32)
  old = policy.resolve(old_codes, sizes, key=key, context=context)
  new_codes = old_codes.copy()
  moved = rng.random(120) < 0.3
  new_codes[moved] = rng.integers(0, (3, 2, 9), (moved.sum(), 3))
  unchanged = (new_codes == old_codes).all(axis=1)
  asked.clear()
  ids = churn.keep_ids(
    policy,
    old.codes,
    old.codebook_sizes,
    unchanged,
    new_codes,
    key=key,
    context=context,
  )
  np.testing.assert_array_equal(ids[unchanged], old.codes[unchanged])
  assert not unchanged[asked].any()
  num_prefix = 2 if name in ("knn", "random_last_level", "sinkhorn") else 3
  np.testing.assert_array_equal(ids[:, :num_prefix], new_codes[:, :num_prefix])
  assert (ids >= 0).all()
  assert (ids < np.array(old.codebook_sizes)).all()
  if not old.shares_ids:
    assert np.unique(ids, axis=0).shape[0] == 120
  again = churn.keep_ids(
    policy,
    old.codes,
    old.codebook_sizes,
    np.ones(120, bool),
    old_codes,
    key=key,
    context=context,
  )
  np.testing.assert_array_equal(again, old.codes)
  fresh = churn.keep_ids(
    policy,
    old.codes,
    old.codebook_sizes,
    np.zeros(120, bool),
    new_codes,
    key=key,
    context=context,
  )
  assert old.shares_ids or np.unique(fresh, axis=0).shape[0] == 120


def test_what_cannot_be_compared_is_refused():
  old = catalog("ab", [[0, 0], [0, 1]], (2, 2))
  with pytest.raises(
    checks.InputError, match=r"None of the 1 items was .* 2 b"
  ):
    churn.report(old, catalog("x", [[0, 0]], (2, 2)))
  with pytest.raises(checks.InputError, match=r"had 2 levels and now have 3"):
    churn.report(old, catalog("a", [[0, 0, 0]], (2, 2, 2)))
  codes = np.zeros((2, 2), np.int32)
  with pytest.raises(checks.InputError, match=r"at least one item and one"):
    churn.match_codes(codes, codes, (2,))
  with pytest.raises(checks.InputError, match=r"Code 3 of item index 0"):
    churn.match_codes(codes, codes + 3, (2, 2))
