"""RQ-VAE: loss gradients in float64, learning, revival, options, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.tokenizers import (
  codebook_training,
  gradient_fit,
  rqvae,
  rqvae_fit,
)

SMALL = {
  "codebook_sizes": (8, 8),
  "hidden_dims": (16,),
  "code_dim": 4,
  "num_epochs": 60,
  "batch_size": 64,
  "check_every_epochs": 20,
  "learning_rate": 5e-3,
}


def clustered(seed=0, num_rows=256, width=12):
  rng = np.random.default_rng(seed)
  centers = 3 * rng.normal(size=(12, width))
  noise = rng.normal(size=(num_rows, width))
  return (centers[rng.integers(0, 12, num_rows)] + noise).astype(np.float32)


def reference_loss(x, params, codes, beta):
  """The loss in float64 with fixed codes and what stop-gradient froze there.

  Returns a function of (params, frozen), where every stop-gradient reads from
  `frozen` and everything else from `params`.
  """

  def mlp(p, x):
    start, num_layers = 0, len(p) - 1
    for i in range(num_layers):
      x = x @ p[f"kernel_{i}"]
      x = x + p["bias"][start : start + x.shape[1]]
      start += x.shape[1]
      if i + 1 < num_layers:
        x = np.maximum(x, 0)
    return x

  def parts(p):
    z = mlp(p["encoder"], x)
    books = [p["quantizer"][f"codebook_{l}"] for l in range(codes.shape[1])]
    return z, [book[codes[:, l]] for l, book in enumerate(books)]

  def loss(p, frozen):
    z, qs = parts(p)
    frozen_z, frozen_qs = parts(frozen)
    # Straight-through: z + sg(total - z).
    total = z + sum(frozen_qs) - frozen_z
    value = np.mean((x - mlp(p["decoder"], total)) ** 2)
    r, frozen_r = z, frozen_z
    for q, frozen_q in zip(qs, frozen_qs, strict=True):
      value += np.mean((frozen_r - q) ** 2)
      value += beta * np.mean((r - frozen_q) ** 2)
      r, frozen_r = r - frozen_q, frozen_r - frozen_q
    return value

  return loss


def test_gradients_agree_with_float64_finite_differences(key):
  tokenizer = rqvae_fit.RQVAE(**SMALL, codebook_init="from_data")
  x = clustered(num_rows=16)
  params = tokenizer.init_params(jnp.asarray(np.tile(x, (2, 1))), key=key)
  codes = np.asarray(
    tokenizer.network(12, training=False).apply(
      {"params": params}, jnp.asarray(x), method="encode"
    )
  )
  with jax.default_matmul_precision("highest"):
    gradient, _ = jax.jit(jax.grad(tokenizer.loss, has_aux=True))(
      params, jnp.asarray(x), key=jax.random.key(1)
    )
  exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  loss = reference_loss(x.astype(np.float64), params, codes, 0.25)
  rng = np.random.default_rng(0)
  leaves, tree = jax.tree.flatten(exact)
  gradients = jax.tree.leaves(gradient)
  for n, leaf in enumerate(leaves):
    for _ in range(4):
      i = tuple(int(rng.integers(0, s)) for s in leaf.shape)
      values = []
      for step in (1e-5, -1e-5):
        moved = [leaf.copy() for leaf in leaves]
        moved[n][i] += step
        values.append(loss(jax.tree.unflatten(tree, moved), exact))
      np.testing.assert_allclose(
        gradients[n][i], (values[0] - values[1]) / 2e-5, rtol=2e-3, atol=2e-5
      )


def test_training_lowers_the_loss_and_uses_the_codes(key):
  tokenizer = rqvae_fit.RQVAE(**SMALL)
  x = clustered()
  state, report = tokenizer.fit(x, key=key)
  assert report.curves["loss"].shape == (60,)
  assert report.curves["loss"][-1] < 0.5 * report.curves["loss"][0]
  assert report.relative_mse < 0.6
  assert min(report.utilization) > 0.8
  for level in range(2):
    assert report.curves[f"dead_codes/level_{level}"].shape == (3,)
  # The last look at the catalog is at the state returned.
  counts = np.bincount(report.codes[:, 0], minlength=8)
  assert report.curves["utilization/level_0"][-1] == np.mean(counts > 0)


def test_whole_fit_is_one_trace(key):
  gradient_fit.train_round.clear_cache()
  rqvae_fit.RQVAE(**SMALL).fit(clustered(), key=key)
  assert gradient_fit.train_round._cache_size() == 1


def test_batches_of_an_epoch_hold_distinct_rows(key):
  x = jnp.arange(50.0)[:, None]

  class Recorder(gradient_fit.GradientOptions):
    def loss(self, params, x, *, key):
      return params["w"][0] * 0.0, ({"loss": jnp.sum(x)}, x)

    def after_step(self, params, extra, seen):
      slot = extra["step"] % 6
      rows = extra["rows"].at[slot].set(seen[:, 0])
      return params, {"step": extra["step"] + 1, "rows": rows}

    def check(self, params, extra, x, *, key, revive):
      return params, extra, extra["rows"]

  program = Recorder(num_epochs=2, batch_size=8, check_every_epochs=1)
  outcome = gradient_fit.fit(
    program,
    {"w": jnp.zeros(1)},
    {"step": jnp.int32(0), "rows": jnp.zeros((6, 8))},
    x,
    key=key,
    name="recorder",
  )
  first, second = (r.ravel() for r in outcome.rounds)
  assert len(np.unique(first)) == len(np.unique(second)) == 48
  assert (first != second).any()


def test_alarms_are_raised_while_training_goes_on_and_once(key, caplog):
  options = SMALL | {"num_epochs": 30, "check_every_epochs": 10}
  x = clustered()
  tokenizer = rqvae_fit.RQVAE(**options, revive_dead_codes=False)
  state, _ = tokenizer.fit(x, key=key)
  assert not caplog.records
  quantizer = dict(state.params["quantizer"])
  quantizer["codebook_0"] = quantizer["codebook_0"].at[1:].set(1e3)
  broken = state.replace(params={**state.params, "quantizer": quantizer})
  tokenizer.fit(x, key=jax.random.key(1), init=broken)
  assert sorted(record.getMessage() for record in caplog.records) == [
    "RQVAE, epoch 10: Level 0: 7 of 8 codes are not used.",
    f"RQVAE, epoch 10: Level 0: one code holds {len(x)} of {len(x)} items.",
  ]


def test_dead_codes_come_back(key):
  options = SMALL | {"num_epochs": 80, "check_every_epochs": 10}
  x = clustered()
  tokenizer = rqvae_fit.RQVAE(**options, codebook_init="random_normal")
  state, _ = tokenizer.fit(x, key=key)
  quantizer = dict(state.params["quantizer"])
  # All but one code far away from every latent.
  quantizer["codebook_0"] = quantizer["codebook_0"].at[1:].set(1e3)
  broken = state.replace(params={**state.params, "quantizer": quantizer})
  fresh = jax.random.key(1)
  _, report = tokenizer.fit(x, key=fresh, init=broken)
  assert report.revived[0] >= 7
  assert report.utilization[0] > 0.8
  without = rqvae_fit.RQVAE(
    **options, codebook_init="random_normal", revive_dead_codes=False
  )
  _, report = without.fit(x, key=jax.random.key(1), init=broken)
  assert report.revived == (0, 0)
  assert report.dead_codes[0] == 7
  assert any("7 of 8 codes are never used" in line for line in report.alarms)


@pytest.mark.parametrize("chunk", [7, 50, 64])
def test_counting_in_chunks_counts_every_row_once(chunk, monkeypatch):
  monkeypatch.setattr(codebook_training, "_ENCODE_CHUNK", chunk)
  codes = np.random.default_rng(0).integers(0, 3, size=(50, 2))
  # Rows that are their own codes.
  counts = codebook_training.count_codes(
    lambda shift, x: (x + shift).astype(jnp.int32),
    jnp.float32(0),
    jnp.asarray(codes, jnp.float32),
    (3, 4),
  )
  for level, size in enumerate((3, 4)):
    expected = np.bincount(codes[:, level], minlength=size)
    np.testing.assert_array_equal(counts[level], expected)


def test_decoding_codes_is_the_forward_pass(key):
  tokenizer = rqvae_fit.RQVAE(**SMALL | {"num_epochs": 1})
  x = clustered()
  state, report = tokenizer.fit(x, key=key)
  rows = gradient_fit.normalize(state.normalization, x)
  out = tokenizer.network(12, training=False).apply(
    {"params": state.params}, rows
  )
  np.testing.assert_array_equal(out.quantizer.codes, report.codes)
  np.testing.assert_allclose(
    gradient_fit.denormalize(state.normalization, out.reconstruction),
    tokenizer.decode(state, report.codes),
    rtol=1e-4,
    atol=1e-4,
  )


def test_loss_by_hand():
  x = jnp.array([[1.0, 3.0]])
  out = rqvae.RQVAEOutput(
    reconstruction=jnp.array([[0.0, 1.0]]),
    quantizer=rqvae.quantizer.QuantizerOutput(
      quantized=x,
      codes=jnp.zeros((1, 1), jnp.int32),
      codebook_loss=jnp.float32(8.0),
      commitment_loss=jnp.float32(4.0),
      entropy_gap=jnp.float32(0.5),
      residuals=x[None],
    ),
  )
  total, terms = rqvae.loss(x, out, commitment_weight=0.25, entropy_weight=2.0)
  assert float(total) == pytest.approx((1 + 4) / 2 + 8 + 0.25 * 4 + 2 * 0.5)
  assert float(terms["reconstruction"]) == pytest.approx(2.5)


def test_standardization_is_exact_and_spares_constant_columns():
  x = np.array([[1.0, 5.0], [3.0, 5.0]], np.float32)
  found = gradient_fit.fit_normalization(jnp.asarray(x), standardize=True)
  np.testing.assert_allclose(found.mean, [2, 5])
  np.testing.assert_allclose(found.scale, [1, 1])
  rows = gradient_fit.normalize(found, x)
  np.testing.assert_allclose(rows, [[-1, 0], [1, 0]])
  np.testing.assert_allclose(gradient_fit.denormalize(found, rows), x)


def test_a_diverging_fit_is_refused(key):
  tokenizer = rqvae_fit.RQVAE(
    **SMALL | {"learning_rate": 1e30, "num_epochs": 4, "check_every_epochs": 2}
  )
  with pytest.raises(checks.InputError, match=r"lower learning_rate=1e\+30"):
    tokenizer.fit(clustered(), key=key)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"codebook_sizes": ()}, "names no level"),
    ({"codebook_sizes": (4, 0)}, r"codebook_sizes\[1\]=0"),
    ({"codebook_sizes": (2**31,)}, "int32"),
    ({"estimator": "straight_trough"}, "Did you mean 'straight_through'"),
    ({"codebook_init": "zeros"}, "Unknown codebook_init 'zeros'"),
    ({"ema_decay": 1.0}, "ema_decay=1.0"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ({"compute_dtype": "float16"}, "Unknown compute_dtype 'float16'"),
  ],
)
def test_impossible_options_are_refused(options, message):
  with pytest.raises(checks.InputError, match=message):
    rqvae_fit.RQVAE(**options)
