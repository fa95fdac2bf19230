"""Algorithm 1: by hand, against a sort in NumPy, sizes, entropy, orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.core import mesh as meshes
from gr_jax.tokenizers import balanced, codebook_stats


def sorted_assign(x, centers, counts, order):
  """Algorithm 1's pass as printed: sort the free items for every cluster."""
  x, centers = x.astype(np.float64), centers.astype(np.float64)
  codes = np.full(len(x), -1)
  for cluster in order:
    free = np.flatnonzero(codes < 0)
    distance = np.square(x[free] - centers[cluster]).sum(-1)
    ranked = free[np.argsort(distance, kind="stable")]  # ties: lowest index
    codes[ranked[: counts[cluster]]] = cluster
  return codes


def whole_numbers(seed, num_rows, num_codes, width=5, top=4):
  """Rows and centers whose squared distances float32 holds exactly.

  Few values make many ties.
  """
  rng = np.random.default_rng(seed)
  x = rng.integers(0, top, size=(num_rows, width)).astype(np.float32)
  centers = x[rng.permutation(num_rows)[:num_codes]]
  return x, centers


def test_a_pass_by_hand():
  x = jnp.array([[0.0], [1.0], [2.0], [9.0], [10.0]])
  codes = balanced.balanced_assign(
    x,
    jnp.array([[1.0], [2.0]]),
    jnp.array([3, 2]),
    jnp.array([1, 0]),  # cluster 1 chooses first: 2, then 1
  )
  np.testing.assert_array_equal(codes, [0, 1, 1, 0, 0])


def test_ties_go_to_the_lowest_item():
  codes = balanced.balanced_assign(
    jnp.ones((5, 2)), jnp.zeros((2, 2)), jnp.array([3, 2]), jnp.array([0, 1])
  )
  np.testing.assert_array_equal(codes, [0, 0, 0, 1, 1])


@pytest.mark.parametrize(
  ("num_rows", "num_codes", "top"),
  [(1, 1, 4), (7, 7, 4), (64, 8, 2), (203, 10, 4), (300, 97, 1000)],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_pass_equals_sorting(num_rows, num_codes, top, seed):
  x, centers = whole_numbers(seed, num_rows, num_codes, top=top)
  counts = balanced.capacities(num_rows, num_codes)
  order = np.random.default_rng(seed).permutation(num_codes).astype(np.int32)
  codes = balanced.balanced_assign(
    jnp.asarray(x), jnp.asarray(centers), jnp.asarray(counts), order
  )
  np.testing.assert_array_equal(codes, sorted_assign(x, centers, counts, order))


@pytest.mark.parametrize("order", balanced.ORDERS)
def test_sizes_differ_by_one_and_entropy_is_log_k(order, key):
  x = np.random.default_rng(0).normal(size=(130, 6)).astype(np.float32)
  tokenizer = balanced.BalancedResidualKMeans(
    codebook_sizes=(12, 12), max_iters=4, order=order
  )
  _, report = tokenizer.fit(x, key=key)
  for level in range(2):
    counts = codebook_stats.code_counts(report.codes[:, level], 12)
    assert set(counts) == {130 // 12, 130 // 12 + 1}
    assert codebook_stats.entropy(counts) == pytest.approx(np.log(12), abs=2e-3)
  # Each code is the mean of its items, whatever is nearest.
  state, report = tokenizer.fit(x, key=key)
  first = x[report.codes[:, 0] == 3]
  np.testing.assert_allclose(state.codebooks[0][3], first.mean(0), rtol=1e-4)


def test_passes_stop_when_nothing_changes(key):
  x, centers = whole_numbers(0, 60, 6)
  found = balanced.fit(
    jnp.asarray(x), jnp.asarray(centers), key=key, max_iters=100
  )
  assert int(found.num_iters) < 100
  counts = jnp.asarray(balanced.capacities(60, 6))
  again = balanced.balanced_assign(
    jnp.asarray(x), found.codebook, counts, jnp.arange(6)
  )
  np.testing.assert_array_equal(again, found.codes)


@pytest.mark.parametrize("order", balanced.ORDERS)
def test_eight_devices_fit_as_one(order, key):
  x = whole_numbers(5, 157, 6, width=3, top=50)[0]
  tokenizer = balanced.BalancedResidualKMeans(
    codebook_sizes=(6,), max_iters=3, order=order
  )
  _, one = tokenizer.fit(x, key=key)
  state, eight = tokenizer.fit(x, key=key, mesh=meshes.make_mesh(jax.devices()))
  np.testing.assert_array_equal(eight.codes, one.codes)
  np.testing.assert_allclose(
    eight.curves["inertia/level_0"], one.curves["inertia/level_0"], rtol=1e-5
  )
  first = x[eight.codes[:, 0] == 2]
  np.testing.assert_allclose(state.codebooks[0][2], first.mean(0), rtol=1e-5)


def test_an_unknown_order_is_refused():
  with pytest.raises(checks.InputError, match="Unknown order 'demands'"):
    balanced.BalancedResidualKMeans(order="demands")
