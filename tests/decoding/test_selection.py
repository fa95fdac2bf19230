import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.decoding import scoring, selection


def reference(scores, k):
  best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
  return np.sort(best, axis=1)


def scores_of(kind, rng, shape):
  x = rng.standard_normal(shape).astype(np.float32)
  if kind == "ties":
    x = np.round(x)  # -0 and 0 among them
  if kind == "sparse":
    x[rng.random(shape) < 0.9] = -np.inf
  if kind == "wide range":
    x = np.exp(20 * x) * np.sign(x)
  return x


@pytest.mark.parametrize("method", selection.METHODS)
@pytest.mark.parametrize(("n", "k"), [(7, 3), (40, 40), (333, 50), (333, 300)])
def test_every_method_chooses_the_same(method, n, k):
  run = jax.jit(lambda x: selection.best_in_order(x, k, method=method))
  rng = np.random.default_rng(n)
  for kind in ("plain", "ties", "sparse", "wide range"):
    scores = scores_of(kind, rng, (3, n))
    got = run(jnp.asarray(scores))
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, reference(scores, k))


@pytest.mark.parametrize(
  "plan",
  [
    ("digits", 8),
    ("groups", 8, ("count",), ("digits", 4)),
    ("groups", 4, ("groups", 4, ("count",), ("count",)), ("count",)),
  ],
)
def test_plans(plan):
  rng = np.random.default_rng(0)
  run = jax.jit(lambda x: selection._run_plan(x, 9, plan))
  for kind in ("plain", "ties", "sparse"):
    scores = scores_of(kind, rng, (2, 601))
    if kind == "sparse":
      scores[:, ::7] = 1.0  # more than k: no padding may be chosen
    np.testing.assert_array_equal(
      run(jnp.asarray(scores)), reference(scores, 9)
    )


def test_plans_suit_their_sizes():
  def name(*shape):
    return selection._plan(*shape)[0]

  assert name(2, 560, 70) == "count"
  assert name(64, 560, 70) == "sort"
  assert name(64, 16000, 500) == "digits"
  assert name(64, 32000, 500) == "groups"
  assert name(64, 32000, 30000) == "digits"  # too many for groups


@pytest.mark.parametrize("method", ["sort", "count"])
def test_best_first(method):
  scores = np.array([[0.0, 3.0, -np.inf, 3.0, -0.0]], np.float32)
  got = selection.best_first(jnp.asarray(scores), method=method)
  assert got.tolist() == [[1, 3, 0, 4, 2]]


def test_unknown_method_is_refused():
  with pytest.raises(InputError, match="selection method 'sorted'; known"):
    selection.best_in_order(jnp.zeros((1, 4)), 2, method="sorted")
  with pytest.raises(InputError, match="normalizer 'fast'"):
    scoring.log_normalizer(jnp.zeros((1, 1, 4)), method="fast")


@pytest.mark.parametrize("method", ["one_pass", "two_pass"])
def test_normalizers(method):
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((2, 5, 77)).astype(np.float32)
  logits *= np.array([1, 30, 1000, 1, 1], np.float32)[None, :, None]
  logits[:, 3, ::2] = -np.inf
  logits[:, 4, 1:] = -np.inf
  got = scoring.log_normalizer(jnp.asarray(logits), method=method)
  wide = logits.astype(np.float64)
  top = wide.max(-1, keepdims=True)
  want = top[..., 0] + np.log(np.exp(wide - top).sum(-1))
  np.testing.assert_allclose(got, want, rtol=2e-7, atol=2e-6)
