"""The residual quantizer: values and gradients in float64, EMA, revival."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.tokenizers import quantizer

B, C, SIZES = 10, 3, (5, 4)


@pytest.fixture(scope="module")
def setting():
  rng = np.random.default_rng(0)
  z = rng.normal(size=(B, C)).astype(np.float32)
  params = {
    f"codebook_{i}": rng.normal(size=(k, C)).astype(np.float32)
    for i, k in enumerate(SIZES)
  }
  return z, params


def module(**options):
  return quantizer.ResidualQuantizer(SIZES, C, **options)


def reference(z, params):
  """Codes and each level's (residual, chosen code) in float64."""
  residual, codes, terms = z, [], []
  for level in range(len(SIZES)):
    book = params[f"codebook_{level}"]
    code = ((residual[:, None] - book[None]) ** 2).sum(-1).argmin(-1)
    terms.append((residual, book[code]))
    residual = residual - book[code]
    codes.append(code)
  return np.stack(codes, -1), terms


def test_forward_agrees_with_float64(setting):
  z, params = setting
  variables = {"params": jax.tree.map(jnp.asarray, params)}
  out = module().apply(variables, jnp.asarray(z))
  codes, terms = reference(z.astype(np.float64), params)
  np.testing.assert_array_equal(out.codes, codes)
  np.testing.assert_allclose(
    out.quantized, sum(q for _, q in terms), rtol=1e-5, atol=1e-6
  )
  expected = sum(np.mean((r - q) ** 2) for r, q in terms)
  np.testing.assert_allclose(out.codebook_loss, expected, rtol=1e-5)
  np.testing.assert_allclose(out.commitment_loss, expected, rtol=1e-5)
  np.testing.assert_allclose(
    module().apply(variables, jnp.asarray(codes, jnp.int32), method="vectors"),
    out.quantized,
    rtol=1e-5,
    atol=1e-6,
  )


def test_codebook_loss_moves_codebooks_only(setting):
  z, params = setting

  def loss(params, z):
    return module().apply({"params": params}, z).codebook_loss

  by_params, by_z = jax.grad(loss, argnums=(0, 1))(
    jax.tree.map(jnp.asarray, params), jnp.asarray(z)
  )
  np.testing.assert_array_equal(by_z, np.zeros_like(z))
  codes, terms = reference(z.astype(np.float64), params)
  for level, (r, q) in enumerate(terms):
    expected = np.zeros((SIZES[level], C))
    np.add.at(expected, codes[:, level], 2 * (q - r) / (B * C))
    np.testing.assert_allclose(
      by_params[f"codebook_{level}"], expected, rtol=1e-4, atol=1e-6
    )


def test_commitment_reaches_the_encoder_at_every_level(setting):
  z, params = setting

  def loss(params, z):
    return module().apply({"params": params}, z).commitment_loss

  by_params, by_z = jax.grad(loss, argnums=(0, 1))(
    jax.tree.map(jnp.asarray, params), jnp.asarray(z)
  )
  for gradient in by_params.values():
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
  _, terms = reference(z.astype(np.float64), params)
  # With q stopped, dr_l / dz = 1 for every level.
  expected = sum(2 * (r - q) / (B * C) for r, q in terms)
  np.testing.assert_allclose(by_z, expected, rtol=1e-4, atol=1e-6)
  first = 2 * (terms[0][0] - terms[0][1]) / (B * C)
  assert np.abs(expected - first).max() > 1e-2  # level 1 contributes


def test_straight_through_passes_the_gradient_once(setting):
  z, params = setting
  weights = jnp.asarray(np.random.default_rng(1).normal(size=(B, C)), "float32")

  def loss(params, z):
    return jnp.sum(module().apply({"params": params}, z).quantized * weights)

  by_params, by_z = jax.grad(loss, argnums=(0, 1))(
    jax.tree.map(jnp.asarray, params), jnp.asarray(z)
  )
  np.testing.assert_allclose(by_z, weights, rtol=1e-6)
  for gradient in by_params.values():
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("sizes", [(16, 16, 16), (5, 9), (1500, 600)])
def test_training_codes_are_the_nearest_of_residuals(sizes):
  rng = np.random.default_rng(0)
  z = rng.normal(size=(500, 8)).astype(np.float32)
  books = [
    rng.normal(size=(k, 8), scale=0.5**level).astype(np.float32)
    for level, k in enumerate(sizes)
  ]
  codes = quantizer.training_codes(
    jnp.asarray(z), [jnp.asarray(b) for b in books]
  )
  residual = z.astype(np.float64)
  for code, book in zip(codes, books, strict=True):
    distances = ((residual[:, None] - book[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(code, distances.argmin(-1))
    residual = residual - book[np.asarray(code)]


def test_averages_by_hand():
  averages = quantizer.CodebookAverages(
    counts=(jnp.array([1.0, 1.0]),), sums=(jnp.array([[0.0], [10.0]]),)
  )
  averages = quantizer.update_averages(
    averages,
    jnp.array([[1], [1], [1]]),
    jnp.array([[[8.0], [9.0], [13.0]]]),
    decay=0.5,
  )
  np.testing.assert_allclose(averages.counts[0], [0.5, 2.0])
  np.testing.assert_allclose(averages.sums[0], [[0.0], [20.0]])
  codebook = quantizer.average_codebooks(averages, [jnp.zeros((2, 1))])[0]
  # The code nobody chose stays; the other moved halfway in mass.
  np.testing.assert_allclose(codebook, [[0.0], [10.0]])


def test_a_code_whose_average_died_out_stays():
  averages = quantizer.CodebookAverages(
    counts=(jnp.array([1e-30]),), sums=(jnp.array([[1e-30]]),)
  )
  codebook = quantizer.average_codebooks(averages, [jnp.array([[7.0]])])[0]
  np.testing.assert_array_equal(codebook, [[7.0]])


def test_only_dead_codes_are_revived(key):
  codebook = jnp.zeros((4, 2))
  rows = jnp.arange(12.0).reshape(6, 2) + 1
  revived = np.asarray(
    quantizer.revive_dead(codebook, jnp.array([3, 0, 0, 1]), rows, key=key)
  )
  np.testing.assert_array_equal(revived[[0, 3]], 0.0)
  found = [
    row for row in revived[[1, 2]] if (row == np.asarray(rows)).all(1).any()
  ]
  assert len(found) == 2
  assert (revived[1] != revived[2]).any()
