"""Cross-entropy over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax.core import checks
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


def test_levels_by_hand():
  # Two items of a level of 2 codes (tokens 3, 4) and one of 4 (tokens 5 to 8);
  # the second item is padding.
  logits = (jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 4)).at[0, 0, 3].set(9.0))
  targets = jnp.array([[4, 8, 0, 0]], jnp.int32)
  terms = losses.level_cross_entropy(
    logits, targets, code_ranges=((3, 2), (5, 4))
  )
  want = np.log(2) + np.log1p(3 * np.exp(-9.0))
  np.testing.assert_allclose(terms.loss, want, rtol=1e-6)
  assert float(terms.tokens) == 2
  assert float(terms.correct) == 2
  wrong = losses.level_cross_entropy(
    logits, targets.at[0, 1].set(6), code_ranges=((3, 2), (5, 4))
  )
  assert float(wrong.correct) == 1


def test_a_direct_path_weighs_as_much_as_all_codes_by_hand():
  logits = [jnp.zeros((1, 2, 2)), jnp.zeros((1, 2, 4)), jnp.zeros((1, 2, 4))]
  logits[2] = logits[2].at[0, 0, 3].set(9.0)
  targets = jnp.array([[4, 8, 0, 0]], jnp.int32)
  ranges = ((3, 2), (5, 4))
  terms = losses.level_cross_entropy(tuple(logits), targets, code_ranges=ranges)
  want = np.log(2) + np.log(4) + 2 * np.log1p(3 * np.exp(-9.0))
  np.testing.assert_allclose(terms.loss, want, rtol=1e-6)
  assert float(terms.tokens) == 4


@pytest.mark.parametrize("count", [1, 4])
def test_logits_of_other_levels_are_refused(count):
  with pytest.raises(checks.InputError, match=f"one more; got {count}"):
    losses.level_cross_entropy(
      (jnp.zeros((1, 1, 2)),) * count,
      jnp.array([[3, 5]], jnp.int32),
      code_ranges=((3, 2), (5, 2)),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_levels_agree_with_optax_in_value_and_gradient(key, smoothing):
  ranges = ((2, 3), (5, 7))
  logit_key, target_key = jax.random.split(key)
  logits = tuple(
    jax.random.normal(k, (4, 2, count))
    for k, (_, count) in zip(jax.random.split(logit_key), ranges, strict=True)
  )
  codes = jax.random.randint(target_key, (4, 2, 2), 0, 3)
  targets = codes + jnp.array([2, 5])[None, None]
  targets = targets.at[3, 1].set(0).reshape(4, 4)

  def ours(x):
    return losses.level_cross_entropy(
      x, targets, code_ranges=ranges, label_smoothing=smoothing
    ).loss

  def theirs(x):
    total = 0.0
    for level, (_, count) in enumerate(ranges):
      hot = jax.nn.one_hot(codes[..., level], count)
      labels = optax.smooth_labels(hot, smoothing)
      each = optax.softmax_cross_entropy(x[level], labels)
      total += jnp.sum(each) - each[3, 1]
    return total

  np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    jax.grad(ours)(logits),
    jax.grad(theirs)(logits),
  )
