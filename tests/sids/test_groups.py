import numpy as np
import pytest

from gr_jax.sids import groups


def test_groups_by_hand():
  codes = np.array([[1, 0], [0, 3], [1, 0], [0, -1], [1, 0]], np.int32)
  found = groups.group_rows(codes, (2, 4))
  np.testing.assert_array_equal(found.order, [3, 1, 0, 2, 4])
  np.testing.assert_array_equal(found.starts, [0, 1, 2])
  np.testing.assert_array_equal(found.counts, [1, 1, 3])
  np.testing.assert_array_equal(found.group, [2, 1, 2, 0, 2])
  np.testing.assert_array_equal(found.rank, [0, 0, 1, 0, 2])
  np.testing.assert_array_equal(
    found.is_shared, [True, False, True, False, True]
  )
  assert (found.num_groups, found.num_shared, found.largest) == (3, 3, 3)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(3,), (2, 3, 2), (2**20,) * 5])
def test_keys_sort_and_compare_like_rows(seed, sizes):
  # The last shape spans 2^100 IDs: digits must be ranked on the way.
  rng = np.random.default_rng(seed)
  codes = rng.integers(-1, sizes, (50, len(sizes)), dtype=np.int32)
  codes[25:] = codes[rng.integers(0, 25, 25)]  # equal rows
  keys = groups.row_keys(codes, sizes)
  rows = [tuple(row) for row in codes.tolist()]
  for i in range(50):
    for j in range(50):
      assert (keys[i] < keys[j]) == (rows[i] < rows[j])


def test_no_rows():
  found = groups.group_rows(np.zeros((0, 2), np.int32), (2, 2))
  assert (found.num_groups, found.num_shared, found.largest) == (0, 0, 0)
