"""Residual k-means: by hand, levels only help, inertia, real data."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.tokenizers import residual_kmeans


def test_codes_and_decoding_by_hand():
  state = residual_kmeans.CodebooksState(
    codebooks=(jnp.array([[0.0], [10.0]]), jnp.array([[-1.0], [0.5], [2.0]]))
  )
  tokenizer = residual_kmeans.ResidualKMeans(codebook_sizes=(2, 3))
  codes = tokenizer.encode(state, jnp.array([[0.4], [9.0], [12.5]]))
  np.testing.assert_array_equal(codes, [[0, 1], [1, 0], [1, 2]])
  np.testing.assert_allclose(
    tokenizer.decode(state, codes), [[0.5], [9.0], [12.0]]
  )


@pytest.mark.parametrize("seed", range(2))
def test_error_never_rises_with_levels_nor_inertia_with_iterations(seed):
  data_key, fit_key = jax.random.split(jax.random.key(seed))
  x = np.asarray(jax.random.normal(data_key, (300, 6)))
  errors = []
  for num_levels in (1, 2, 3):
    _, report = residual_kmeans.ResidualKMeans(
      codebook_sizes=(8,) * num_levels, tol=0.0, max_iters=30
    ).fit(x, key=fit_key)
    errors.append(report.mse)
    for level in range(num_levels):
      inertia = report.curves[f"inertia/level_{level}"]
      assert np.all(np.diff(inertia) <= 1e-5 * inertia[0])
    # What the last level left is what decoding misses.
    np.testing.assert_allclose(inertia[-1] / len(x), report.mse, rtol=1e-3)
  assert errors[0] > errors[1] > errors[2]


@pytest.mark.slow
def test_beauty_codes_use_every_code(real_data_dir, key):
  path = pathlib.Path(real_data_dir) / "beauty" / "embeddings.minilm.f16.npy"
  x = np.load(path).astype(np.float32)
  _, report = residual_kmeans.ResidualKMeans().fit(x, key=key)
  assert report.utilization == (1.0, 1.0, 1.0)
  assert report.relative_mse < 0.42
  assert report.collision_rate < 0.3
