"""Sinkhorn k-means: nearly balanced, its codes' means, refusals."""

import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.tokenizers import codebook_stats, residual_kmeans, sinkhorn


def test_sizes_are_nearly_equal_and_codes_are_means(key):
  rng = np.random.default_rng(0)
  # Crowded and lonely places: free k-means is far from balanced here.
  x = rng.normal(size=(600, 4)) * np.exp(rng.normal(size=(600, 1)))
  x = x.astype(np.float32)
  free = residual_kmeans.ResidualKMeans(codebook_sizes=(12,))
  tokenizer = sinkhorn.SinkhornResidualKMeans(codebook_sizes=(12,))
  state, report = tokenizer.fit(x, key=key)
  counts = codebook_stats.code_counts(report.codes[:, 0], 12)
  assert counts.max() < 1.25 * 600 / 12
  _, unbalanced = free.fit(x, key=key)
  assert report.gini[0] < 0.5 * unbalanced.gini[0]
  mine = x[report.codes[:, 0] == 5]
  np.testing.assert_allclose(state.codebooks[0][5], mine.mean(0), rtol=1e-4)


def test_a_plan_too_large_is_refused(key, monkeypatch):
  monkeypatch.setattr(sinkhorn, "_MAX_PLAN", 1000)
  x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
  with pytest.raises(checks.InputError, match="A plan of 200 x 8 entries is"):
    sinkhorn.SinkhornResidualKMeans(codebook_sizes=(8,)).fit(x, key=key)


def test_impossible_options_are_refused():
  with pytest.raises(checks.InputError, match="epsilon > 0, max_iters >= 1"):
    sinkhorn.SinkhornResidualKMeans(epsilon=0.0)
