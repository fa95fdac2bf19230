"""Estimators, Sinkhorn and the entropy gap: values, gradients, marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.tokenizers import codebook_init, estimators, quantizer, rqvae_fit


def pair(key, width=4):
  z_key, q_key = jax.random.split(key)
  z = jax.random.normal(z_key, (6, width))
  return z, z + 0.3 * jax.random.normal(q_key, (6, width))


@pytest.mark.parametrize("name", sorted(estimators.ESTIMATORS))
def test_the_value_is_the_quantized_one(name, key):
  z, q = pair(key)
  np.testing.assert_allclose(
    estimators.ESTIMATORS[name](z, q), q, rtol=1e-6, atol=1e-6
  )


def test_rotation_trick_by_hand():
  # z along x, q along y and twice as long: a quarter turn, scaled by two.
  z, q = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
  jacobian = jax.jacobian(lambda z: estimators.rotation_trick(z, q)[0])(z)
  np.testing.assert_allclose(jacobian[:, 0], [[0, -2], [2, 0]], atol=1e-5)


def test_rotation_trick_keeps_angles(key):
  # The Jacobian is |q| / |z| times an orthogonal matrix that maps z to q.
  z, q = pair(key)
  for row in range(3):
    jacobian = jax.jacobian(
      lambda z, q=q[row : row + 1]: estimators.rotation_trick(z, q)[0]
    )(z[row : row + 1])[:, 0]
    jacobian = np.asarray(jacobian, np.float64)
    scale = np.linalg.norm(q[row]) / np.linalg.norm(z[row])
    np.testing.assert_allclose(
      jacobian @ jacobian.T, scale**2 * np.eye(4), atol=1e-4
    )
    np.testing.assert_allclose(jacobian @ z[row], q[row], atol=1e-4)


def test_gumbel_softmax_samples_by_distance(key):
  distances = jnp.broadcast_to(jnp.log(jnp.array([[1.0, 2.0, 4.0]])), (9000, 3))
  choice = estimators.gumbel_softmax(distances, temperature=1.0, key=key)
  share = np.bincount(choice.codes, minlength=3) / 9000
  expected = np.array([4, 2, 1]) / 7  # softmax(-log d) is 1 / d, normalized
  error = np.sqrt(expected * (1 - expected) / 9000)
  assert (abs(share - expected) < 4 * error).all()
  np.testing.assert_allclose(
    choice.weights, np.eye(3)[np.asarray(choice.codes)], atol=1e-6
  )


def test_gumbel_gradients_reach_encoder_and_all_codes(key):
  z = jax.random.normal(key, (5, 3))
  module = quantizer.ResidualQuantizer((4,), 3, estimator="gumbel_softmax")
  codebook = jax.random.normal(jax.random.key(1), (4, 3))
  params = {"params": {"codebook_0": codebook}}

  def loss(params, z):
    out = module.apply(params, z, key=jax.random.key(3))
    return jnp.sum(jnp.square(out.quantized - 1.0))

  by_params, by_z = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, z)
  assert np.abs(np.asarray(by_z)).max() > 0
  codebook = np.asarray(by_params["params"]["codebook_0"])
  assert (np.abs(codebook).max(-1) > 0).all()


def test_sinkhorn_marginals_and_balance(key):
  distances = jnp.square(jax.random.normal(key, (60, 6)) + 2.0)
  distances = distances.at[:, 0].multiply(0.1)  # all prefer code 0
  plan = np.asarray(
    estimators.sinkhorn_plan(distances, epsilon=0.05, num_iters=200)
  )
  np.testing.assert_allclose(plan.sum(1), 1 / 60, rtol=1e-4)
  np.testing.assert_allclose(plan.sum(0), 1 / 6, rtol=1e-2)
  codes = estimators.sinkhorn_codes(distances, epsilon=0.05, num_iters=200)
  nearest = np.asarray(jnp.argmin(distances, -1))
  assert np.bincount(nearest, minlength=6).max() > 30
  assert np.bincount(codes, minlength=6).max() < 15


def test_sinkhorn_agrees_with_pot(key, monkeypatch):
  # Importing POT would import TensorFlow and PyTorch for their backends.
  for name in ("TENSORFLOW", "PYTORCH", "CUPY", "JAX"):
    monkeypatch.setenv(f"POT_BACKEND_DISABLE_{name}", "1")
  ot = pytest.importorskip("ot")
  distances = np.square(np.asarray(jax.random.normal(key, (20, 5))))
  epsilon = 0.1
  theirs = ot.sinkhorn(
    np.full(20, 1 / 20),
    np.full(5, 1 / 5),
    distances / distances.mean(),
    reg=epsilon,
    numItermax=500,
  )
  ours = estimators.sinkhorn_plan(
    jnp.asarray(distances), epsilon=epsilon, num_iters=500
  )
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_entropy_gap_by_hand():
  # Two rows, each sure of another code: the mean usage is even.
  sure = jnp.array([[0.0, 100.0], [100.0, 0.0]])
  np.testing.assert_allclose(
    estimators.entropy_gap(sure, temperature=0.01), 0.0, atol=1e-5
  )
  same = jnp.array([[0.0, 100.0], [0.0, 100.0]])
  np.testing.assert_allclose(
    estimators.entropy_gap(same, temperature=0.01), np.log(2), rtol=1e-4
  )


@pytest.mark.parametrize(
  "options",
  [
    {"estimator": "rotation_trick"},
    {"estimator": "gumbel_softmax", "temperature": 0.5},
    {"ema_decay": 0.9},
    {"sinkhorn_epsilon": 0.05},
    {"entropy_weight": 0.1, "temperature": 0.1},
  ],
  ids=lambda options: next(iter(options)) + str(next(iter(options.values()))),
)
def test_every_option_of_rq_vae_learns(options, key):
  rng = np.random.default_rng(0)
  centers = 3 * rng.normal(size=(8, 6))
  x = centers[rng.integers(0, 8, 128)] + 0.3 * rng.normal(size=(128, 6))
  tokenizer = rqvae_fit.RQVAE(
    codebook_sizes=(6, 6),
    hidden_dims=(12,),
    code_dim=3,
    num_epochs=80,
    batch_size=64,
    check_every_epochs=40,
    learning_rate=1e-2,
    **options,
  )
  _, report = tokenizer.fit(x.astype(np.float32), key=key)
  assert report.relative_mse < 0.5
  curve = report.curves["reconstruction"]
  assert curve[-1] < 0.6 * curve[0]


@pytest.mark.parametrize("name", sorted(codebook_init.CODEBOOK_INITS))
def test_codebook_inits(name, key):
  rows_key, init_key = jax.random.split(key)
  rows = 5.0 + 2.0 * jax.random.normal(rows_key, (400, 3))
  codebook = np.asarray(
    codebook_init.CODEBOOK_INITS[name](rows, num_codes=40, key=init_key)
  )
  assert codebook.shape == (40, 3)
  assert len(np.unique(codebook, axis=0)) == 40
  std = codebook.std(axis=0).mean() / 2.0
  if name == "large_variance_normal":
    assert 3.0 < std < 5.0
  else:
    assert 0.7 < std < 2.0
  if name in ("from_data", "kmeans_plus_plus"):
    found = (codebook[:, None] == np.asarray(rows)[None]).all(-1).any(1)
    assert found.all()
