"""PQ, OPQ and RQ-OPQ: rotations, objectives, errors beside each other."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.tokenizers import opq, pq, residual_kmeans, rq_opq


def correlated(seed=0, num_rows=600, width=8):
  """Rows whose variance lies in few directions across all columns."""
  rng = np.random.default_rng(seed)
  scales = np.array([4, 3, 2, 1, 0.5, 0.3, 0.2, 0.1])
  mix = np.linalg.qr(rng.normal(size=(width, width)))[0]
  return (rng.normal(size=(num_rows, width)) * scales @ mix).astype(np.float32)


def test_pq_by_hand():
  state = residual_kmeans.CodebooksState(
    (jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[5.0, 5.0], [7.0, 9.0]]))
  )
  tokenizer = pq.PQ(codebook_sizes=(2, 2))
  codes = tokenizer.encode(state, jnp.array([[0.9, 1.0, 5.0, 6.0]]))
  np.testing.assert_array_equal(codes, [[1, 0]])
  np.testing.assert_array_equal(tokenizer.decode(state, codes), [[1, 1, 5, 5]])


@pytest.mark.parametrize("seed", range(2))
def test_opq_rotation_objective_and_error(seed, key):
  x = correlated(seed)
  sizes = (8, 8)
  state, report = opq.OPQ(codebook_sizes=sizes, num_iters=15).fit(x, key=key)
  rotation = np.asarray(state.rotation, np.float64)
  np.testing.assert_allclose(rotation @ rotation.T, np.eye(8), atol=1e-5)
  objective = report.curves["objective"]
  assert np.all(np.diff(objective) <= 1e-4 * objective[0])
  np.testing.assert_allclose(objective[-1] / len(x), report.mse, rtol=1e-3)
  _, plain = pq.PQ(codebook_sizes=sizes).fit(x, key=key)
  assert report.mse < plain.mse


def test_opq_from_the_identity_is_never_worse_than_pq(key):
  # Independent columns: there is nothing to rotate.
  x = np.random.default_rng(0).uniform(size=(400, 4)).astype(np.float32)
  sizes = (5, 4)
  _, plain = pq.PQ(codebook_sizes=sizes, max_iters=30).fit(x, key=key)
  _, ours = opq.OPQ(codebook_sizes=sizes, num_iters=3).fit(x, key=key)
  assert ours.mse <= plain.mse * (1 + 1e-5)


def test_principal_directions_are_spread_evenly():
  x = jnp.asarray(correlated(num_rows=4000))
  rotation = opq.principal_rotation(x, 2)
  np.testing.assert_allclose(
    np.asarray(rotation) @ np.asarray(rotation).T, np.eye(8), atol=1e-5
  )
  variance = np.asarray(opq.rotate(rotation, x)).var(axis=0)
  logs = np.log(variance).reshape(2, 4).sum(-1)
  sorted_logs = np.sort(np.log(variance))[::-1].reshape(2, 4).sum(-1)
  # Without spreading, the first sub-space has nearly all the variance.
  assert abs(logs[0] - logs[1]) < 0.15 * (sorted_logs[0] - sorted_logs[1])


@pytest.mark.parametrize("tokenizer", [pq.PQ, opq.OPQ])
def test_indivisible_widths_are_refused(tokenizer, key):
  with pytest.raises(checks.InputError, match="D=8 is not divisible by 3"):
    tokenizer(codebook_sizes=(4, 4, 4)).fit(correlated(), key=key)


def test_rq_opq_collides_less_than_residual_kmeans_at_equal_bits(key):
  # Heavy tails, as embeddings have: late k-means levels go to outliers.
  rng = np.random.default_rng(0)
  centers = 3 * rng.normal(size=(40, 8))
  x = centers[rng.integers(0, 40, 1500)] + rng.standard_t(3, size=(1500, 8))
  x = x.astype(np.float32)
  _, residual = residual_kmeans.ResidualKMeans(
    codebook_sizes=(16, 16, 16), max_iters=20
  ).fit(x, key=key)
  tokenizer = rq_opq.RQOPQ(
    residual_sizes=(16, 16), subspace_sizes=(4, 4), num_iters=5, max_iters=20
  )
  assert np.prod(tokenizer.codebook_sizes) == 16**3
  _, ours = tokenizer.fit(x, key=key)
  assert ours.collision_rate < residual.collision_rate


@pytest.mark.slow
def test_rq_opq_with_balanced_levels(key):
  x = correlated(num_rows=96)
  tokenizer = rq_opq.RQOPQ(
    residual_sizes=(8,), subspace_sizes=(4, 4), balanced=True, num_iters=2
  )
  _, report = tokenizer.fit(x, key=key)
  assert set(np.bincount(report.codes[:, 0])) == {12}


@pytest.mark.slow
def test_rq_opq_collides_less_on_beauty(real_data_dir, key):
  path = pathlib.Path(real_data_dir) / "beauty" / "embeddings.minilm.f16.npy"
  x = np.load(path).astype(np.float32)
  _, residual = residual_kmeans.ResidualKMeans().fit(x, key=key)
  _, ours = rq_opq.RQOPQ(max_iters=30, num_iters=15).fit(x, key=key)
  assert ours.collision_rate < 0.6 * residual.collision_rate


def test_agrees_with_faiss(key):
  faiss = pytest.importorskip("faiss")
  faiss.omp_set_num_threads(1)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3000, 16)) @ rng.normal(size=(16, 16))
  x = x.astype(np.float32)

  def error(index):
    index.train(x)
    return np.square(x - index.sa_decode(index.sa_encode(x))).sum(-1).mean()

  _, ours = pq.PQ(codebook_sizes=(32,) * 4).fit(x, key=key)
  assert ours.mse < 1.03 * error(faiss.IndexPQ(16, 4, 5))
  _, ours = opq.OPQ(codebook_sizes=(32,) * 4, num_iters=20).fit(x, key=key)
  transform = faiss.OPQMatrix(16, 4)
  transform.pq = faiss.ProductQuantizer(16, 4, 5)
  theirs = faiss.IndexPreTransform(transform, faiss.IndexPQ(16, 4, 5))
  assert ours.mse < 1.03 * error(theirs)
  _, ours = residual_kmeans.ResidualKMeans(codebook_sizes=(32, 32)).fit(
    x, key=key
  )
  theirs = faiss.IndexResidualQuantizer(16, 2, 5)
  theirs.rq.max_beam_size = 1  # greedy, as encode is
  assert ours.mse < 1.03 * error(theirs)
