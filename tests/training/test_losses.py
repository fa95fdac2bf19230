"""Cross-entropy over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax.training import losses


def test_by_hand():
  # Even logits over 4 tokens cost log 4 each; padding (0) costs nothing.
  logits = jnp.zeros((1, 3, 4))
  targets = jnp.array([[2, 3, 0]], jnp.int32)
  terms = losses.token_cross_entropy(logits, targets)
  np.testing.assert_allclose(terms.loss, 2 * np.log(4), rtol=1e-6)
  assert float(terms.tokens) == 2
  sure = jnp.zeros((1, 1, 4)).at[0, 0, 1].set(100.0)
  terms = losses.token_cross_entropy(sure, jnp.array([[1]], jnp.int32))
  np.testing.assert_allclose(terms.loss, 0, atol=1e-6)
  assert float(terms.correct) == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_agrees_with_optax_in_value_and_gradient(key, smoothing):
  logit_key, target_key = jax.random.split(key)
  logits = jax.random.normal(logit_key, (5, 3, 7))
  targets = jax.random.randint(target_key, (5, 3), 0, 7)

  def ours(x):
    return losses.token_cross_entropy(
      x, targets, label_smoothing=smoothing
    ).loss

  def theirs(x):
    labels = optax.smooth_labels(jax.nn.one_hot(targets, 7), smoothing)
    each = optax.softmax_cross_entropy(x, labels)
    return jnp.sum(jnp.where(targets > 0, each, 0.0))

  np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-5)
  np.testing.assert_allclose(
    jax.grad(ours)(logits), jax.grad(theirs)(logits), atol=1e-5
  )
