import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.sids import collisions
from gr_jax.sids.collisions import (
  ExtraLevel,
  KeepShared,
  RandomItem,
  SparseId,
)


def random_codes(seed, num_items=300, sizes=(4, 3, 5)):
  rng = np.random.default_rng(seed)
  return rng.integers(0, sizes, (num_items, len(sizes)), dtype=np.int32)


def slow_extra_level(codes):
  """Counts occurrences one row after the other."""
  seen = {}
  extra = []
  for row in codes.tolist():
    extra.append(seen.get(tuple(row), 0))
    seen[tuple(row)] = extra[-1] + 1
  return np.array(extra)


def test_extra_level_by_hand(key):
  codes = np.array([[1, 0], [0, 0], [1, 0], [1, 1], [1, 0]], np.int32)
  found = ExtraLevel(spare_codes=2).resolve(codes, (2, 2), key=key)
  np.testing.assert_array_equal(found.codes[:, 2], [0, 0, 1, 0, 2])
  np.testing.assert_array_equal(found.codes[:, :2], codes)
  assert found.codes.dtype == np.int32
  assert found.codebook_sizes == (2, 2, 5)  # three used, two spare
  assert (found.num_shared, found.largest_bucket, found.num_moved) == (3, 3, 0)
  assert not found.shares_ids


@pytest.mark.parametrize("seed", range(5))
def test_extra_level_counts_like_a_loop(seed, key):
  codes = random_codes(seed)
  codes[::7, 1] = -1  # IDs that skip a level
  found = ExtraLevel().resolve(codes, (4, 3, 5), key=key)
  np.testing.assert_array_equal(found.codes[:, 3], slow_extra_level(codes))
  assert len(np.unique(found.codes, axis=0)) == len(codes)
  assert found.largest_bucket == found.codes[:, 3].max() + 1


def test_spare_codes_end_at_the_capacity(key):
  codes = np.zeros((3, 1), np.int32)
  full = ExtraLevel(max_per_sid=3).resolve(codes, (2,), key=key)
  assert full.codebook_sizes == (2, 3)


def test_extra_level_refuses_with_counts(key):
  codes = np.array([[0]] * 5 + [[1]] * 4 + [[2]] * 2, np.int32)
  message = (
    r"5 of 11 items in 2 semantic IDs do not fit: up to 5 items share one ID "
    r"and max_per_sid=2\. Raise max_per_sid to at least 5"
  )
  with pytest.raises(checks.InputError, match=message):
    ExtraLevel(max_per_sid=2).resolve(codes, (3,), key=key)


def test_none_keeps_and_reports(key):
  codes = np.array([[1, 0], [0, 0], [1, 0]], np.int32)
  found = KeepShared().resolve(codes, (2, 2), key=key)
  np.testing.assert_array_equal(found.codes, codes)
  assert (found.num_shared, found.largest_bucket) == (2, 2)
  assert found.shares_ids
  assert not KeepShared().resolve(codes[:2], (2, 2), key=key).shares_ids


@pytest.mark.parametrize("policy", [KeepShared(), ExtraLevel()])
def test_broken_codes_are_refused(policy, key):
  codes = np.array([[0, 1], [0, 2]], np.int32)
  with pytest.raises(checks.InputError, match=r"Code 2 of item index 1 at lev"):
    policy.resolve(codes, (1, 2), key=key)
  with pytest.raises(checks.InputError, match=r"\(2, 2\) need .* \(1,\)"):
    policy.resolve(codes, (1,), key=key)
  with pytest.raises(checks.InputError, match=r"at least one item"):
    policy.resolve(codes[:0], (1, 3), key=key)


def test_impossible_options_are_refused():
  with pytest.raises(checks.InputError, match=r"got 0 and 16"):
    ExtraLevel(max_per_sid=0)
  with pytest.raises(checks.InputError, match=r"got 256 and -1"):
    ExtraLevel(spare_codes=-1)


def test_table_names_every_policy():
  assert set(collisions.POLICIES) == {
    "none", "extra_level", "random_item", "sparse_id", "knn",
    "random_last_level", "sinkhorn",
  }  # fmt: skip


def test_sparse_id_appends_the_item_itself(key):
  codes = np.array([[1], [0], [1]], np.int32)
  found = SparseId(spare_items=2).resolve(codes, (2,), key=key)
  np.testing.assert_array_equal(found.codes, [[1, 0], [0, 1], [1, 2]])
  assert found.codebook_sizes == (2, 5)
  two = SparseId(num_tokens=2, spare_items=2).resolve(codes, (2,), key=key)
  assert two.codebook_sizes == (2, 3, 3)  # 3 * 3 numbers hold 5
  np.testing.assert_array_equal(two.codes[:, 1:], [[0, 0], [0, 1], [0, 2]])
  with pytest.raises(checks.InputError, match="got 0 and 1024"):
    SparseId(num_tokens=0)


def test_extra_level_counts_on(key):
  policy = ExtraLevel(spare_codes=1)
  found = policy.resolve(np.array([[1], [0], [1]], np.int32), (2,), key=key)
  new = policy.append(
    found.codes, found.codebook_sizes, np.array([[1], [0]], np.int32), key=key
  )
  np.testing.assert_array_equal(new, [[1, 2], [0, 1]])
  message = r"1 of 2 new items do not fit: up to 4 .* has 3.*at least 1 more"
  with pytest.raises(checks.InputError, match=message):
    policy.append(
      found.codes, found.codebook_sizes, np.array([[1], [1]], np.int32), key=key
    )


def test_sparse_id_counts_on(key):
  policy = SparseId(spare_items=1)
  found = policy.resolve(np.array([[1], [0]], np.int32), (2,), key=key)
  new = policy.append(
    found.codes, found.codebook_sizes, np.array([[1]], np.int32), key=key
  )
  np.testing.assert_array_equal(new, [[1, 2]])
  with pytest.raises(checks.InputError, match=r"1 of 2 new .* end at 3\."):
    policy.append(
      found.codes, found.codebook_sizes, np.array([[1], [1]], np.int32), key=key
    )


def test_shared_ids_are_appended_as_they_are(key):
  codes = np.array([[1], [1]], np.int32)
  new = RandomItem().append(codes, (2,), codes[:1], key=key)
  np.testing.assert_array_equal(new, [[1]])
