"""Distances to the last level's codes."""

import numpy as np
import pytest

from gr_jax.tokenizers import TOKENIZERS, last_level
from gr_jax.tokenizers.lsh import LSH


@pytest.mark.parametrize(
  "name",
  ["residual_kmeans", "balanced_residual_kmeans", "minibatch_residual_kmeans"],
)
def test_distances_are_those_of_decoded_rows(name, key, monkeypatch):
  """And the code of a plain fit is the nearest; chunks change nothing."""
  x = np.random.default_rng(0).normal(size=(70, 6)).astype(np.float32)
  tokenizer = TOKENIZERS[name](codebook_sizes=(5, 7))
  state, report = tokenizer.fit(x, key=key)
  found = last_level.distances(tokenizer, state, x, report.codes)
  for code in range(7):
    codes = report.codes.copy()
    codes[:, -1] = code
    gap = np.asarray(x) - np.asarray(tokenizer.decode(state, codes))
    np.testing.assert_allclose(found[:, code], (gap**2).sum(1), rtol=1e-4)
  if name != "balanced_residual_kmeans":
    nearest = found.argmin(axis=1)
    assert np.mean(nearest == report.codes[:, -1]) == 1
  monkeypatch.setattr(last_level, "_CHUNK_ROWS", 32)
  monkeypatch.setattr(last_level, "_DECODED_ELEMENTS", 32 * 7 * 6)
  again = last_level.distances(tokenizer, state, x, report.codes)
  np.testing.assert_allclose(again, found, rtol=1e-5)


def test_any_tokenizer_has_them(key):
  x = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
  tokenizer = LSH(num_tokens=2, num_bits=3)
  state, report = tokenizer.fit(x, key=key)
  found = last_level.distances(tokenizer, state, x, report.codes)
  assert found.shape == (20, tokenizer.codebook_sizes[-1])
  assert np.isfinite(found).all()
