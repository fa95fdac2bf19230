"""Softmax with dropout in kernels, interpreted: against softmax as written."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gr_jax.core import mesh as mesh_lib
from gr_jax.core import pallas_gpu
from gr_jax.models import attention, softmax_kernel
from gr_jax.models import dropout as dropout_lib
from gr_jax.models.config import T5Config

BATCH, QUERIES, HEADS, KEYS = 9, 7, 6, 20  # two programs of rows and examples


def draw_inputs(*, dtype="float32", has_bias=True):
  """Logits, bias and gradient."""
  draw = np.random.default_rng(0)
  shape = (QUERIES, HEADS, KEYS)
  logits = jnp.asarray(3 * draw.normal(size=(BATCH, *shape)), dtype)
  bias = jnp.asarray(draw.normal(size=shape), jnp.float32)
  gradient = jnp.asarray(draw.normal(size=logits.shape), dtype)
  return logits, bias if has_bias else None, gradient


def draw_mask(kind):
  shape = {"packed": (BATCH, QUERIES), "padding": (BATCH, 1), "causal": (1, 7)}
  mask = np.random.default_rng(1).random((*shape[kind], KEYS)) < 0.6
  mask[..., 0] = True
  return jnp.asarray(mask)


def start_dropout(shared):
  return dropout_lib.start(
    jax.random.key(0), rate=0.3, num_sites=1, shared=shared
  )


def as_written(logits, bias, mask, dropout):
  wide = logits.astype(jnp.float32)
  if bias is not None:
    wide = wide + bias[None]
  if mask is not None:
    wide = jnp.where(mask[:, :, None], wide, -1e10)
  weights = jax.nn.softmax(wide).astype(logits.dtype)
  if dropout is not None:
    shape = weights.shape
    if dropout.shared:
      shape = (shape[0], 1, *shape[2:])
    scale = dropout.scale(0, shape, weights.dtype)
    weights = weights * jnp.broadcast_to(scale, weights.shape)
  return weights


def results(function, logits, bias, gradient):
  """Weights, and gradients with respect to logits and bias."""

  def run(logits, bias, gradient):
    out, pull = jax.vjp(function, logits, bias)
    return out, *pull(gradient)

  return jax.jit(run)(logits, bias, gradient)


def assert_close(got, want, tolerance):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
  ("kind", "has_bias", "shared"),
  [
    ("packed", True, True),
    ("packed", False, False),
    ("padding", False, True),
    ("causal", True, False),
    (None, True, None),
  ],
)
@pytest.mark.parametrize("interpret", [True, False])
def test_weights_and_gradients_are_as_written(
  kind, has_bias, shared, interpret
):
  """The kernels, interpreted, and the plain form beside them."""
  inputs = draw_inputs(has_bias=has_bias)
  mask = None if kind is None else draw_mask(kind)
  dropout = None if shared is None else start_dropout(shared)
  options = {"mask": mask, "dropout": dropout}
  kernel = functools.partial(
    softmax_kernel.weights, interpret=interpret, **options
  )
  got = results(kernel, *inputs)
  want = results(functools.partial(as_written, **options), *inputs)
  assert_close(got, want, 1e-6)


def test_bfloat16_is_rounded_once_more_at_most():
  inputs = draw_inputs(dtype="bfloat16")
  options = {"mask": draw_mask("packed"), "dropout": start_dropout(True)}
  kernel = functools.partial(softmax_kernel.weights, interpret=True, **options)
  got = results(kernel, *inputs)
  assert [x.dtype for x in got] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
  assert_close(
    got, results(functools.partial(as_written, **options), *inputs), 5e-3
  )


def test_a_query_that_sees_nothing_weighs_all_keys_alike():
  logits, bias, _ = draw_inputs()
  mask = draw_mask("packed").at[2, 3].set(False)
  got = softmax_kernel.weights(logits, bias, mask, None, interpret=True)
  np.testing.assert_allclose(got[2, 3], 1 / KEYS, rtol=1e-6)


def test_replicas_of_vmap_are_each_their_own():
  logits, bias, gradient = draw_inputs()
  mask = draw_mask("packed")

  def run(function, key, rate, bias):
    dropout = dropout_lib.start(key, rate=rate, num_sites=1, shared=False)
    out, pull = jax.vjp(
      lambda *x: function(*x, mask=mask, dropout=dropout), logits, bias
    )
    return out, *pull(gradient)

  kernel = functools.partial(softmax_kernel.weights, interpret=True)
  rates = jnp.array([0.1, 0.5])
  biases = jnp.stack([bias, -bias])
  got, want = (
    jax.jit(jax.vmap(functools.partial(run, f)))(
      jax.random.split(jax.random.key(1), 2), rates, biases
    )
    for f in (kernel, as_written)
  )
  assert_close(got, want, 1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_and_heads_stay_on_their_devices(shared):
  mesh = mesh_lib.make_mesh(jax.devices(), model=2)
  logits, bias, gradient = draw_inputs()
  logits, gradient = logits[:8], gradient[:8]
  options = {"mask": draw_mask("packed")[:8], "dropout": start_dropout(shared)}
  kernel = functools.partial(softmax_kernel.weights, interpret=True, **options)
  # A mask an element counts the heads of all devices.
  heads = "model" if shared else None
  rows = NamedSharding(mesh, PartitionSpec("data", None, heads))
  place = jax.device_put

  @jax.jit
  def run(logits, bias, gradient):
    out, pull = jax.vjp(kernel, logits, bias)
    return out, *pull(gradient)

  inputs = (
    place(logits, rows),
    place(bias, NamedSharding(mesh, PartitionSpec(None, heads))),
    place(gradient, rows),
  )
  program = run.lower(*inputs).compile()
  got = program(*inputs)
  want = results(
    functools.partial(as_written, **options), logits, bias, gradient
  )
  assert_close(got, want, 1e-6)
  assert "all-gather" not in program.as_text()
  assert got[0].sharding.is_equivalent_to(rows, 4)


@pytest.mark.parametrize("length", [softmax_kernel.LEAST, 8])
def test_nvidia_gpus_get_the_kernel_where_rows_are_long(monkeypatch, length):
  cfg = T5Config(
    vocab_size=4, emb_dim=8, num_heads=2, head_dim=4, dtype="bfloat16"
  )
  x = jax.random.normal(jax.random.key(1), (2, length, 8), jnp.bfloat16)
  module = attention.Attention(cfg)
  params = module.init(jax.random.key(0), x, x)

  def run(x):
    return module.apply(params, x, x, dropout=start_dropout(False))

  def has_kernel():
    return "pallas_call" in str(jax.make_jaxpr(lambda x: run(x))(x))

  plain = run(x)
  assert not has_kernel()
  monkeypatch.setattr(pallas_gpu, "is_known_device", lambda: True)
  assert has_kernel() == (length >= softmax_kernel.LEAST)
  assert_close(run(x), plain, 1e-2)  # placed on a CPU all the same
