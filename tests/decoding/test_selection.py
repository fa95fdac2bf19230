import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gr_jax.core import mesh as mesh_lib
from gr_jax.core import pallas_gpu
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
  if kind == "constant":
    x[:] = -1.5
  if kind == "empty":
    x[:] = -np.inf
  return x


KINDS = ("plain", "ties", "sparse", "wide range", "constant", "empty")


@pytest.mark.parametrize("method", selection.METHODS)
@pytest.mark.parametrize(
  ("n", "k"), [(7, 1), (7, 3), (40, 40), (333, 50), (333, 332), (3000, 90)]
)
def test_every_method_chooses_the_same(method, n, k):
  run = jax.jit(lambda x: selection.best_in_order(x, k, method=method))
  rng = np.random.default_rng(n)
  for kind in KINDS:
    scores = scores_of(kind, rng, (3, n))
    got = run(jnp.asarray(scores))
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, reference(scores, k))


def test_kernel_by_hand():
  zeros = [0.0, -0.0, 0.0, -1.0]  # all zeros tie
  inf = [-np.inf, np.inf, -np.inf, -3e38]
  least = [-1e-45, 1e-45, -np.inf, 0.0]  # next to zero on both sides
  scores = jnp.array([zeros, inf, least], jnp.float32)
  got = selection.best_in_order(scores, 2, method="kernel")
  assert got.tolist() == [[0, 1], [1, 3], [1, 3]]
  got = selection.best_in_order(scores, 3, method="kernel")
  assert got.tolist() == [[0, 1, 2], [0, 1, 3], [0, 1, 3]]


@pytest.mark.parametrize("seed", range(8))
def test_kernel_chooses_as_a_sort_does(seed):
  rng = np.random.default_rng(seed)
  n = int(rng.integers(2, 700))
  k = int(rng.integers(1, n))
  # Few distinct numbers, -inf and both zeros among them.
  values = rng.standard_normal(int(rng.integers(1, 40))).astype(np.float32)
  values = np.append(values, np.array([-np.inf, 0.0, -0.0], np.float32))
  scores = rng.choice(values, (4, n))
  got = selection.best_in_order(jnp.asarray(scores), k, method="kernel")
  np.testing.assert_array_equal(got, reference(scores, k))


@pytest.mark.parametrize(
  ("n", "k"),
  [(1 << 15, 500), ((1 << 15) + 5, 40), (100_001, 9), (40_000, 39_999)],
)
def test_long_rows(n, k):
  # As long as the kernel takes, then by groups, then by a sort.
  run = jax.jit(lambda x: selection.best_in_order(x, k, method="kernel"))
  for kind in ("ties", "sparse"):
    scores = scores_of(kind, np.random.default_rng(n), (2, n))
    np.testing.assert_array_equal(
      run(jnp.asarray(scores)), reference(scores, k)
    )


def test_kernel_under_vmap_and_in_gradients():
  scores = np.random.default_rng(0).standard_normal((3, 2, 50))
  scores = jnp.asarray(scores, jnp.float32)

  def choose(x):
    return selection.best_in_order(x, 6, method="kernel")

  got = jax.vmap(choose)(scores)
  np.testing.assert_array_equal(got, jnp.stack([choose(x) for x in scores]))
  grads = jax.grad(lambda x: selection.take(x, choose(x)).sum())(scores[0])
  assert grads.sum() == 12


@pytest.mark.parametrize(
  "spec", [("data",), (("data", "model"),), (None, "data")]
)
def test_kernel_on_rows_split_over_devices(spec):
  mesh = mesh_lib.make_mesh(jax.devices(), model=2)
  scores = np.random.default_rng(0).standard_normal((16, 96))
  scores = scores.astype(np.float32)
  sharding = NamedSharding(mesh, PartitionSpec(*spec))
  run = jax.jit(lambda x: selection.best_in_order(x, 7, method="kernel"))
  placed = jax.device_put(scores, sharding)
  program = run.lower(placed).compile()
  got = program(placed)
  np.testing.assert_array_equal(got, reference(scores, 7))
  if spec[0] is not None:  # rows stay where they are
    assert "all-gather" not in program.as_text()
    assert got.sharding.is_equivalent_to(sharding, 2)


def test_nvidia_gpus_get_the_kernel(monkeypatch):
  scores = scores_of("ties", np.random.default_rng(0), (4, 400))
  choose = jax.jit(lambda x: selection.best_in_order(x, 50))
  assert "pallas_call" not in str(jax.make_jaxpr(choose)(scores))
  monkeypatch.setattr(pallas_gpu, "is_known_device", lambda: True)
  choose = jax.jit(lambda x: selection.best_in_order(x, 50))
  assert "pallas_call" in str(jax.make_jaxpr(choose)(scores))
  # Placed on a CPU all the same.
  np.testing.assert_array_equal(choose(scores), reference(scores, 50))


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
