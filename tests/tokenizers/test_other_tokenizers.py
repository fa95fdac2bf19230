"""What must hold of LSH, random codes, R-VQ, VQ-VAE, OPMQ and autoencoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.tokenizers import (
  TOKENIZERS,
  autoencoder,
  gradient_fit,
  lsh,
  opmq,
  pq,
  random_codes,
  residual_kmeans,
  rqvae_fit,
  rvq,
  vq_vae,
)

NETWORK = {"hidden_dims": (12,), "code_dim": 4}
TRAINED = {
  "num_epochs": 60,
  "batch_size": 64,
  "check_every_epochs": 30,
  "learning_rate": 1e-2,
}


def clustered(seed=0, num_rows=192, width=10):
  rng = np.random.default_rng(seed)
  centers = 3 * rng.normal(size=(12, width))
  noise = rng.normal(size=(num_rows, width))
  return (centers[rng.integers(0, 12, num_rows)] + noise).astype(np.float32)


def test_lsh_by_hand():
  state = lsh.LSHState(
    planes=jnp.array([[[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]]),
    mean=jnp.zeros(2),
    direction_mean=jnp.zeros(2),
    scale=jnp.float32(0.5),
  )
  tokenizer = lsh.LSH(num_tokens=1, num_bits=3)
  x = jnp.array([[2.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [0.0, 0.0]])
  codes = tokenizer.encode(state, x)
  np.testing.assert_array_equal(codes[:, 0], [1, 3, 4, 0])
  # +x, -y, -(-x - y): (1 + 1, -1 + 1) / 2.
  np.testing.assert_allclose(tokenizer.decode(state, codes)[0], [1.0, 0.0])


@pytest.mark.parametrize("degrees", [20, 90, 150])
def test_lsh_bits_differ_by_the_angle(degrees, key):
  angle = np.deg2rad(degrees)
  x = np.zeros((2, 6), np.float32)
  x[0, 0], x[1, 0], x[1, 1] = 1.0, np.cos(angle), np.sin(angle)
  tokenizer = lsh.LSH(num_tokens=400, num_bits=8)
  state, _ = tokenizer.fit(x, key=key)
  a, b = np.asarray(tokenizer.encode(state, x))
  share = (
    np.mean([bin(u ^ v).count("1") for u, v in zip(a, b, strict=True)]) / 8
  )
  error = np.sqrt(share * (1 - share) / 3200)
  assert abs(share - angle / np.pi) < 4 * error


def test_lsh_refuses_tokens_beyond_int32():
  with pytest.raises(checks.InputError, match="num_bits=31"):
    lsh.LSH(num_bits=31)


def test_random_codes_are_uniform_and_only_depend_on_the_row(key):
  x = np.random.default_rng(0).normal(size=(8000, 5)).astype(np.float32)
  tokenizer = random_codes.RandomCodes(codebook_sizes=(10, 2**20))
  state, report = tokenizer.fit(x, key=key)
  counts = np.bincount(report.codes[:, 0], minlength=10)
  # Chi-square with 9 degrees of freedom: mean 9, standard deviation 4.2.
  assert ((counts - 800) ** 2 / 800).sum() < 27
  assert report.collision_rate < 0.01
  np.testing.assert_array_equal(
    tokenizer.encode(state, x[::-1].copy())[::-1], report.codes
  )
  twins = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]] * 2, np.float32)
  twins[1, 0] = -0.0
  a, b = np.asarray(tokenizer.encode(state, twins))
  np.testing.assert_array_equal(a, b)
  # Neighboring floats get unrelated codes.
  near = np.nextafter(x[:2000], np.float32(np.inf))
  same = tokenizer.encode(state, near)[:, 0] == report.codes[:2000, 0]
  assert abs(np.mean(same) - 0.1) < 4 * np.sqrt(0.09 / 2000)


def test_vq_vae_is_rq_vae_with_one_level(key):
  x = clustered()
  options = {"codebook_sizes": (8,), **NETWORK, **TRAINED, "num_epochs": 6}
  ours, a = vq_vae.VQVAE(**options).fit(x, key=key)
  theirs, b = rqvae_fit.RQVAE(**options).fit(x, key=jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)
  np.testing.assert_array_equal(a.curves["loss"], b.curves["loss"])


def test_vq_vae_refuses_two_levels():
  with pytest.raises(checks.InputError, match="vq_vae has one level"):
    vq_vae.VQVAE(codebook_sizes=(8, 8))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_rvq_moves_codebooks_by_minibatch(ema_decay, key):
  x = clustered()
  options = {"codebook_sizes": (8, 8), "ema_decay": ema_decay, **TRAINED}
  tokenizer = rvq.RVQ(**options | {"learning_rate": 0.1})
  state, report = tokenizer.fit(x, key=key)
  curve = report.curves["reconstruction"]
  assert curve[-1] < curve[0]
  # It is not residual k-means: no code lies at the mean of its rows.
  first = state.params["quantizer"]["codebook_0"]
  lloyd = residual_kmeans.kmeans.update(
    residual_kmeans.kmeans.from_codebook(first), jnp.asarray(x)
  )
  assert np.abs(np.asarray(lloyd.codebook) - np.asarray(first)).max() > 1e-3
  _, kmeans = residual_kmeans.ResidualKMeans(codebook_sizes=(8, 8)).fit(
    x, key=jax.random.key(5)
  )
  assert report.mse < 1.25 * kmeans.mse


def test_orthogonality_by_hand():
  experts = {
    "kernel_0": jnp.array([[[3.0, 0.0]], [[0.0, 5.0]]]),
    "bias_0": jnp.zeros((2, 2)),
  }
  np.testing.assert_allclose(opmq.orthogonality(experts), 0.0, atol=1e-6)
  experts["kernel_0"] = jnp.array([[[3.0, 0.0]], [[4.0, 4.0]]])
  gram = opmq.expert_gram(experts)
  np.testing.assert_allclose(gram, [[1, 0.5**0.5], [0.5**0.5, 1]], rtol=1e-5)
  np.testing.assert_allclose(opmq.orthogonality(experts), 1.0, rtol=1e-5)


def test_experts_move_apart_in_training(key):
  x = clustered()
  tokenizer = opmq.OPMQ(
    codebook_sizes=(8, 8, 8),
    codebook_init="from_data",
    orthogonality_weight=1.0,
    **NETWORK,
    **TRAINED,
  )
  params = tokenizer.init_params(jnp.asarray(x), key=key)
  normalization = gradient_fit.fit_normalization(
    jnp.asarray(x), standardize=True
  )
  state = gradient_fit.TrainedState(params, normalization)
  # Experts that start as near copies of the first.
  experts = jax.tree.map(
    lambda leaf: leaf[:1] + 0.05 * leaf, state.params["experts"]
  )
  start = state.replace(params={**state.params, "experts": experts})

  def overlap(state):
    gram = np.asarray(opmq.expert_gram(state.params["experts"]))
    return np.abs(gram[~np.eye(3, dtype=bool)]).max()

  assert overlap(start) > 0.9
  trained, report = tokenizer.fit(x, key=jax.random.key(1), init=start)
  assert overlap(trained) < 0.6 * overlap(start)
  curve = report.curves["orthogonality"]
  assert curve[-1] < 0.5 * curve[0]


def test_kl_equals_the_closed_form():
  mean, log_variance = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, np.log(4.0)]])
  # 1/2 (1 + 1 - 1 - 0) + 1/2 (0 + 4 - 1 - log 4).
  expected = 0.5 + 0.5 * (3 - np.log(4.0))
  np.testing.assert_allclose(
    autoencoder.kl_divergence(mean, log_variance), [expected], rtol=1e-6
  )


def test_kl_agrees_with_sampling(key):
  mean, log_variance = jnp.array([[0.5]]), jnp.array([[-0.7]])
  std = jnp.exp(0.5 * log_variance)
  z = mean + std * jax.random.normal(key, (200_000, 1))
  log_ratio = (
    -0.5 * jnp.square((z - mean) / std) - jnp.log(std) + 0.5 * jnp.square(z)
  )
  np.testing.assert_allclose(
    np.mean(log_ratio),
    autoencoder.kl_divergence(mean, log_variance)[0],
    atol=4 * np.std(log_ratio) / 200_000**0.5,
  )


def test_vae_gradients_agree_with_float64_finite_differences(key):
  vae = autoencoder.VAE(hidden_dims=(5,), code_dim=2, beta=1.5)
  x = clustered(num_rows=6)[:, :4]
  network = vae.network(4, training=False)
  params = jax.jit(network.init)(jax.random.key(1), jnp.asarray(x))["params"]
  noise = np.asarray(jax.random.normal(key, (6, 2)), np.float64)
  with jax.default_matmul_precision("highest"):
    gradient, _ = jax.jit(jax.grad(vae.loss, has_aux=True))(
      params, jnp.asarray(x), key=jax.random.key(0)
    )

  def mlp(p, x):
    biases = iter(p["bias"])
    for i in range(len(p) - 1):
      x = x @ p[f"kernel_{i}"]
      x = x + np.array([next(biases) for _ in range(x.shape[1])])
      x = np.maximum(x, 0) if i + 2 < len(p) else x
    return x

  def loss(p):
    mean, log_variance = np.split(mlp(p["encoder"], x), 2, axis=-1)
    z = mean + np.exp(0.5 * log_variance) * noise
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(-1)
    error = np.mean((x - mlp(p["decoder"], z)) ** 2)
    return error + 1.5 / 4 * kl.mean()

  leaves, tree = jax.tree.flatten(
    jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  )
  for n, leaf in enumerate(leaves):
    i = tuple(s // 2 for s in leaf.shape)
    values = []
    for step in (1e-6, -1e-6):
      moved = [leaf.copy() for leaf in leaves]
      moved[n][i] += step
      values.append(loss(jax.tree.unflatten(tree, moved)))
    np.testing.assert_allclose(
      jax.tree.leaves(gradient)[n][i],
      (values[0] - values[1]) / 2e-6,
      rtol=1e-3,
      atol=1e-5,
    )


@pytest.mark.parametrize("kind", [autoencoder.Autoencoder, autoencoder.VAE])
def test_autoencoders_are_a_ceiling(kind, key):
  x = clustered()
  model = kind(**NETWORK, **TRAINED)
  state, report = model.fit(x, key=key)
  z = model.embed(state, x)
  assert z.shape == (192, 4)
  np.testing.assert_allclose(
    report.mse,
    np.mean(np.sum((x - np.asarray(model.reconstruct(state, z))) ** 2, -1)),
    rtol=1e-4,
  )
  assert report.relative_mse < 0.6
  template = model.abstract_state(10)
  assert jax.tree.structure(template) == jax.tree.structure(state)
  again, second = model.fit(x, key=jax.random.key(3), init=state)
  assert second.mse < 1.1 * report.mse
  with pytest.raises(checks.InputError, match="width D=10"):
    model.embed(state, x[:, :4])


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_a_bottleneck_is_coded_by_any_tokenizer(name, key):
  x = clustered()
  sizes = (6, 5)
  model = TOKENIZERS[name](
    **NETWORK,
    **TRAINED,
    quantizer=residual_kmeans.ResidualKMeans(codebook_sizes=sizes),
  )
  assert model.codebook_sizes == sizes
  assert model.hierarchical
  state, report = model.fit(x, key=key)
  # The codes are those of the bottleneck, by the quantizer alone.
  z = model.reducer.embed(state.reducer, x)
  assert z.shape == (192, 4)
  np.testing.assert_array_equal(
    report.codes, model.quantizer.encode(state.quantizer, z)
  )
  q = model.quantizer.decode(state.quantizer, report.codes)
  np.testing.assert_allclose(
    model.decode(state, report.codes),
    model.reducer.reconstruct(state.reducer, q),
  )
  ceiling = np.mean(
    np.sum((x - model.reducer.reconstruct(state.reducer, z)) ** 2, -1)
  ) / np.mean(np.sum((x - x.mean(0, keepdims=True)) ** 2, -1))
  np.testing.assert_allclose(
    report.unquantized_relative_mse, ceiling, rtol=1e-4
  )
  assert ceiling < report.relative_mse < 1


def test_a_bottleneck_too_narrow_for_its_quantizer_is_refused(key, monkeypatch):
  model = TOKENIZERS["autoencoder"](
    hidden_dims=(8,), code_dim=4, quantizer=pq.PQ(codebook_sizes=(4, 4, 4))
  )
  monkeypatch.setattr(
    gradient_fit, "fit", lambda *_, **__: pytest.fail("trained before")
  )
  with pytest.raises(checks.InputError, match="D=4 is not divisible by 3 sub"):
    model.fit(clustered(), key=key)
