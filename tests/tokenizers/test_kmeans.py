"""k-means: by hand, against scikit-learn, inertia, empty clusters, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.tokenizers import kmeans


def start(codebook):
  codebook = jnp.asarray(codebook, jnp.float32)
  return kmeans.KMeansState(
    step=jnp.int32(0),
    codebook=codebook,
    counts=jnp.zeros(codebook.shape[0]),
    inertia=jnp.float32(jnp.inf),
  )


def test_one_update_by_hand():
  x = jnp.array([[0.0], [2.0], [10.0], [12.0]])
  state = kmeans.update(start([[0.0], [12.0], [99.0]]), x)
  # Pairs move to their means; the code nobody chose stays where it was.
  np.testing.assert_allclose(state.codebook, [[1.0], [11.0], [99.0]])
  np.testing.assert_allclose(state.inertia, 0 + 2**2 + 2**2 + 0)
  np.testing.assert_array_equal(state.counts, [2, 2, 0])


def test_an_empty_cluster_moves_to_the_farthest_row():
  x = jnp.array([[0.0], [2.0], [10.0], [13.0]])
  fit = kmeans.lloyd(start([[0.0], [10.0], [99.0]]), x, max_iters=1, tol=0.0)
  # Means 1 and 11.5 are of the old choice; row 13 was farthest (3) from 10.
  np.testing.assert_allclose(fit.state.codebook, [[1.0], [11.5], [13.0]])
  assert int(fit.revived) == 1
  fit = kmeans.lloyd(fit.state, x, max_iters=10, tol=0.0)
  np.testing.assert_allclose(fit.state.codebook, [[1.0], [10.0], [13.0]])
  assert int(fit.revived) == 0


def test_fewer_distinct_rows_than_codes_ends(key):
  x = jnp.repeat(jnp.array([[0.0], [1.0]]), 4, axis=0)
  fit = kmeans.fit(x, num_codes=5, key=key, max_iters=50)
  assert int(fit.num_iters) < 50
  assert int(np.sum(np.asarray(fit.state.counts) > 0)) == 2
  np.testing.assert_allclose(fit.state.inertia, 0.0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_codes", [1, 3, 16])
def test_inertia_never_rises_and_no_row_is_lost(seed, num_codes):
  data_key, fit_key = jax.random.split(jax.random.key(seed))
  x = jax.random.normal(data_key, (64, 4))
  fit = kmeans.fit(x, num_codes=num_codes, key=fit_key, max_iters=8, tol=0.0)
  inertias = np.asarray(fit.inertias)[: int(fit.num_iters)]
  assert np.all(np.diff(inertias) <= 1e-5 * inertias[0])
  assert float(fit.state.counts.sum()) == x.shape[0]


def test_agrees_with_scikit_learn_from_the_same_start():
  cluster = pytest.importorskip("sklearn.cluster")
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2000, 8)).astype(np.float32)
  first = x[:32]
  ours = kmeans.lloyd(start(first), jnp.asarray(x), max_iters=200, tol=0.0)
  theirs = cluster.KMeans(
    32, init=first, n_init=1, max_iter=200, tol=0.0, algorithm="lloyd"
  ).fit(x)
  np.testing.assert_allclose(ours.state.inertia, theirs.inertia_, rtol=0.01)


def test_seeds_are_distinct_rows_and_spread_out(key):
  rng = np.random.default_rng(0)
  centers = np.arange(8, dtype=np.float32)[:, None] * 100
  x = centers[rng.integers(0, 8, 500)] + rng.normal(size=(500, 1))
  state = kmeans.init(jnp.asarray(x, jnp.float32), num_codes=8, key=key)
  # Squared distances between clusters are 10^4 times those inside.
  found = np.unique(np.round(np.asarray(state.codebook) / 100))
  assert len(found) == 8


def test_seeds_are_drawn_by_squared_distance():
  # From the rows 0, 1 and 3 with first seed 0, the second is 3 with 9 / 10.
  x = jnp.array([[0.0], [1.0], [3.0]])
  keys = jax.random.split(jax.random.key(0), 4000)
  pairs = np.asarray(
    jax.vmap(lambda k: kmeans.init(x, num_codes=2, key=k).codebook)(keys)
  )[..., 0]
  after_zero = pairs[pairs[:, 0] == 0, 1]
  error = np.sqrt(0.9 * 0.1 / len(after_zero))
  assert abs(np.mean(after_zero == 3) - 0.9) < 4 * error


def test_fewer_rows_than_codes_is_refused(key):
  with pytest.raises(checks.InputError, match=r"N=2, num_codes=3"):
    kmeans.init(jnp.zeros((2, 4)), num_codes=3, key=key)
  with pytest.raises(checks.InputError, match=r"N=2, num_codes=3"):
    kmeans.random_rows(jnp.zeros((2, 4)), 3, key)


def test_lower_precision_says_which_codes_it_changes():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3000, 16)), jnp.float32)
  first = start(x[:64])
  exact = kmeans.lloyd(first, x, max_iters=5, tol=0.0)
  assert float(exact.changed) == 0
  coarse = kmeans.lloyd(first, x, max_iters=5, tol=0.0, precision="bfloat16")
  assert 0 < float(coarse.changed) < 0.03
  np.testing.assert_allclose(
    coarse.state.inertia, exact.state.inertia, rtol=0.01
  )


def test_sums_and_counts_by_both_forms():
  x = jnp.arange(12.0).reshape(6, 2)
  codes = jnp.array([2, 0, 2, 2, 0, 3], jnp.int32)
  sums, counts = kmeans.sum_and_count(codes, x, 5)
  np.testing.assert_array_equal(counts, [2, 0, 3, 1, 0])
  np.testing.assert_array_equal(sums[2], [0 + 4 + 6, 1 + 5 + 7])


def test_rows_may_be_stored_in_bfloat16(key):
  draw = np.random.default_rng(0)
  rows = jnp.asarray(draw.normal(size=(300, 6)), jnp.bfloat16)
  same = rows.astype(jnp.float32)
  # Three codes of one place: empty clusters are seeded from rows, too.
  for codebook in (None, same[jnp.array([0, 1, 2, 2, 2])]):
    fits = [
      kmeans.fit(
        x,
        num_codes=5,
        key=jax.random.clone(key),
        max_iters=4,
        codebook=codebook,
      )
      for x in (rows, same)
    ]
    jax.tree.map(np.testing.assert_array_equal, *fits)


def test_one_trace_serves_every_level(key):
  kmeans.lloyd.clear_cache()
  for seed in range(3):
    x = jax.random.normal(jax.random.key(seed), (50, 3))
    kmeans.fit(x, num_codes=4, key=jax.random.fold_in(key, seed))
  assert kmeans.lloyd._cache_size() == 1
