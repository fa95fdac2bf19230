"""Nearest codes: by hand, against NumPy float64, in chunks, far from zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import nearest


def test_distances_by_hand():
  x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
  codebook = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
  np.testing.assert_allclose(
    nearest.squared_distances(x, codebook),
    [[0, 9, 16], [25, 16, 9]],
    atol=1e-5,
  )


def test_ties_go_to_the_lowest_code():
  x = jnp.array([[0.0], [5.0]])
  codebook = jnp.array([[7.0], [-1.0], [1.0], [1.0]])
  np.testing.assert_array_equal(nearest.nearest_code(x, codebook), [1, 0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 100, None])
def test_agrees_with_float64_and_chunks_do_not_matter(seed, chunk_size):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(100, 6)).astype(np.float32)
  codebook = rng.normal(size=(9, 6)).astype(np.float32)
  exact = np.square(
    x[:, None, :].astype(np.float64) - codebook[None, :, :]
  ).sum(-1)
  found = jax.jit(nearest.nearest, static_argnames="chunk_size")(
    jnp.asarray(x), jnp.asarray(codebook), chunk_size=chunk_size
  )
  assert found.codes.dtype == jnp.int32
  np.testing.assert_array_equal(found.codes, exact.argmin(-1))
  np.testing.assert_allclose(found.squared_distance, exact.min(-1), rtol=1e-5)


def test_data_far_from_the_origin_keeps_its_codes():
  rng = np.random.default_rng(0)
  # Powers of two keep x + 4096 exact in float32.
  x = rng.integers(-64, 64, size=(200, 8)).astype(np.float32) / 64
  codebook = rng.integers(-64, 64, size=(16, 8)).astype(np.float32) / 64
  exact = np.square(
    x[:, None, :].astype(np.float64) - codebook[None, :, :]
  ).sum(-1)
  np.testing.assert_allclose(
    nearest.squared_distances(x + 4096, codebook + 4096), exact, rtol=1e-3
  )


def test_without_the_shift_whole_numbers_are_exact():
  rng = np.random.default_rng(0)
  x = rng.integers(0, 50, size=(60, 7)).astype(np.float32)
  codebook = rng.integers(0, 50, size=(11, 7)).astype(np.float32)
  exact = np.square(x[:, None, :] - codebook[None, :, :]).sum(-1)
  np.testing.assert_array_equal(
    nearest.squared_distances(x, codebook, centered=False), exact
  )
  found = nearest.nearest(x, codebook, centered=False, chunk_size=16)
  np.testing.assert_array_equal(found.codes, exact.argmin(-1))
  np.testing.assert_array_equal(found.squared_distance, exact.min(-1))


def test_bfloat16_rows_are_measured_in_float32(key):
  x = jax.random.normal(key, (5, 3)).astype(jnp.bfloat16)
  distances = nearest.squared_distances(x, x)
  assert distances.dtype == jnp.float32
  np.testing.assert_allclose(np.diag(distances), 0.0, atol=1e-5)
