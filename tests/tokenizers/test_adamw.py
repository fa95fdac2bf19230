"""AdamW with rates computed ahead: optax's updates, by its own functions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax.tokenizers import adamw


@pytest.mark.parametrize("warmup_steps", [0, 4])
def test_updates_are_those_of_optax(warmup_steps):
  rng = np.random.default_rng(0)
  params = {
    "layer": {
      "kernel_0": rng.normal(size=(3, 4)).astype(np.float32),
      "bias": rng.normal(size=4).astype(np.float32),
    }
  }
  gradients = [
    jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
    for _ in range(12)
  ]
  schedule = optax.warmup_cosine_decay_schedule(
    0.0 if warmup_steps else 0.1, 0.1, warmup_steps, 12
  )
  with jax.numpy_dtype_promotion("standard"):
    peer = optax.adamw(
      schedule,
      weight_decay=0.3,
      mask={"layer": {"kernel_0": True, "bias": False}},
    )
    state, expected = peer.init(params), params
    for gradient in gradients:
      updates, state = peer.update(gradient, state, expected)
      expected = optax.apply_updates(expected, updates)
  rates = adamw.rates(
    jnp.arange(12), peak=0.1, warmup_steps=warmup_steps, num_steps=12
  )
  moments = adamw.start(jax.tree.map(jnp.asarray, params))
  for step, gradient in enumerate(gradients):
    params, moments = adamw.update(
      params,
      gradient,
      moments,
      jax.tree.map(lambda rate, step=step: rate[step], rates),
      weight_decay=0.3,
    )
  jax.tree.map(
    lambda ours, theirs: np.testing.assert_allclose(
      ours, theirs, rtol=1e-5, atol=1e-6
    ),
    params,
    expected,
  )
