"""Attention's two ways, position buckets, gradients written by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.models import attention, layers
from gr_jax.models.config import T5Config

CONFIG = T5Config(vocab_size=4, emb_dim=8, num_heads=2, head_dim=4)


def _attend(cfg, seed=0):
  """Output with an unpacked mask and a bias, and its gradients."""
  draw = np.random.default_rng(seed)
  x = jnp.asarray(draw.normal(size=(3, 5, cfg.emb_dim)), jnp.float32)
  memory = jnp.asarray(draw.normal(size=(3, 6, cfg.emb_dim)), jnp.float32)
  mask = jnp.asarray(draw.random((3, 5, 6)) < 0.6).at[:, :, 0].set(True)
  bias = jnp.asarray(draw.normal(size=(2, 5, 6)), jnp.float32)
  module = attention.Attention(cfg)
  params = module.init(jax.random.key(0), x, memory)

  def run(params, x, memory, bias):
    return module.apply(params, x, memory, mask=mask, bias=bias)

  def plain(params, x, memory, bias):
    kernels = {k: v["kernel"] for k, v in params["params"].items()}
    split = (cfg.num_heads, cfg.head_dim)
    q, k, v = (
      (y @ kernels[name]).reshape(*y.shape[:2], *split)
      for name, y in (("query", x), ("key", memory), ("value", memory))
    )
    logits = jnp.einsum("bqad,bsad->baqs", q, k) + bias[None]
    weights = jax.nn.softmax(
      jnp.where(mask[:, None], logits, attention.MASKED), axis=-1
    )
    heads = jnp.einsum("baqs,bsad->bqad", weights, v)
    return heads.reshape(*x.shape[:2], -1) @ kernels["out"]

  inputs = params, x, memory, bias

  def results(f):
    def loss(*args):
      return jnp.sum(jnp.sin(f(*args)))

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    return jax.jit(f)(*inputs), grad(*inputs)

  return results(run), results(plain)


@pytest.mark.parametrize("emb_dim", [8, 12])
def test_both_ways_are_attention_as_written(emb_dim):
  """Width 8 = 2 Dh forms no keys and values, width 12 does."""
  got, want = _attend(dataclasses.replace(CONFIG, emb_dim=emb_dim))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want
  )


def test_a_query_that_sees_nothing_yields_no_nan():
  logits = jnp.zeros((1, 2, 3))
  mask = jnp.array([[[True, True, False], [False] * 3]])
  weights, back = jax.vjp(
    lambda x: attention.masked_softmax(x, None, mask), logits
  )
  np.testing.assert_allclose(weights[0, 0], [0.5, 0.5, 0.0])
  assert np.isfinite(back(jnp.ones_like(weights))[0]).all()


@pytest.mark.parametrize("activations", [("gelu", "linear"), ("silu", "relu")])
def test_the_gate_differentiates_as_written(activations):
  a, b = jax.random.normal(jax.random.key(0), (2, 4, 6))
  functions = {"gelu": jax.nn.gelu, "silu": jax.nn.silu, "relu": jax.nn.relu}
  first, second = (functions.get(n, lambda x: x) for n in activations)

  def ours(a, b):
    return jnp.sum(jnp.sin(layers._gate(activations, a, b)))

  def plain(a, b):
    return jnp.sum(jnp.sin(first(a) * second(b)))

  got = jax.value_and_grad(ours, argnums=(0, 1))(a, b)
  want = jax.value_and_grad(plain, argnums=(0, 1))(a, b)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), got, want
  )


def test_position_buckets_by_hand():
  bucket = functools.partial(
    attention.relative_position_bucket, num_buckets=32, max_distance=128
  )
  # Bidirectional: 8 exact buckets a side, later keys start at bucket 16.
  positions = np.array([0, -1, -7, -8, 1, 7, 8, -127, -128, -500, 500])
  np.testing.assert_array_equal(
    bucket(positions, bidirectional=True),
    [0, 1, 7, 8, 17, 23, 24, 15, 15, 15, 31],
  )
  # Causal: 16 exact buckets, later keys count as distance 0.
  np.testing.assert_array_equal(
    bucket(np.array([3, 0, -15, -16, -128, -900]), bidirectional=False),
    [0, 0, 15, 16, 31, 31],
  )


@pytest.mark.parametrize("bidirectional", [True, False])
def test_position_buckets_against_a_slow_loop(bidirectional):
  def slow(position):
    buckets = 16 if bidirectional else 32
    start = buckets if bidirectional and position > 0 else 0
    distance = abs(position) if bidirectional else max(-position, 0)
    exact = buckets // 2
    if distance < exact:
      return start + distance
    # The widest bucket whose geometric border is not past the distance.
    index = exact
    while index + 1 < buckets and distance >= exact * (128 / exact) ** (
      (index + 1 - exact) / (buckets - exact)
    ) * (1 - 1e-6):
      index += 1
    return start + index

  positions = np.arange(-200, 200)
  np.testing.assert_array_equal(
    attention.relative_position_bucket(
      positions,
      bidirectional=bidirectional,
      num_buckets=32,
      max_distance=128,
    ),
    [slow(position) for position in positions],
  )
