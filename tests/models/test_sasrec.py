"""SASRec: a slow NumPy forward, the generators' interface, a refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.models import SASRec, T5Config, logical_axes

CONFIG = T5Config(
  vocab_size=11,
  emb_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=6,
  mlp_activations=("relu",),
  num_decoder_layers=2,
)
# Two tokens an item, of which the last counts: items 4 5 6, and item 9.
RANGES = ((2, 2), (4, 6))  # the last token is padding of the vocabulary
INPUTS = jnp.array([[2, 4, 3, 5, 2, 6, 1], [2, 9, 1, 0, 0, 0, 0]])
TARGETS = jnp.array([[0, 2], [0, 3]])


@pytest.fixture(scope="module")
def model():
  return SASRec(CONFIG, RANGES, max_history=3)


@pytest.fixture(scope="module")
def params(model):
  return jax.jit(model.init)(jax.random.key(0), INPUTS, TARGETS)["params"]


def _forward(params, items):
  """One user's logits in plain NumPy."""
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  table = params["token_embedder"]["embedding"]
  positions = params["position_embedder"]["embedding"]

  def norm(x, part):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * part["scale"]

  x = (table[items] + positions[3 - len(items) :]) * np.sqrt(8)
  for index in range(2):
    layer = params[f"layers_{index}"]
    y = norm(x, layer["pre_self_attention_layer_norm"])
    kernels = {k: v["kernel"] for k, v in layer["self_attention"].items()}
    heads = []
    for head in range(2):
      part = slice(4 * head, 4 * head + 4)
      q, k, v = (y @ kernels[n][:, part] for n in ("query", "key", "value"))
      logits = q @ k.T
      logits[~np.tril(np.ones(logits.shape, bool))] = -np.inf
      weights = np.exp(logits - logits.max(-1, keepdims=True))
      heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    x = x + np.concatenate(heads, axis=1) @ kernels["out"]
    y = norm(x, layer["pre_mlp_layer_norm"])
    hidden = np.maximum(y @ layer["mlp"]["wi"]["kernel"], 0)
    x = x + hidden @ layer["mlp"]["wo"]["kernel"]
  x = norm(x[-1], params["decoder_norm"])
  return x @ table[4:10].T


def test_logits_are_those_of_plain_numpy(model, params):
  logits = jax.jit(model.apply)({"params": params}, INPUTS, TARGETS)
  before, own = logits
  np.testing.assert_allclose(own[0, 0], _forward(params, [4, 5, 6]), atol=1e-5)
  np.testing.assert_allclose(own[1, 0], _forward(params, [9]), atol=1e-5)
  np.testing.assert_array_equal(before, np.zeros((2, 1, 2)))


def test_every_item_of_packed_rows_has_its_logits(model, params):
  row = jnp.array([[2, 4, 3, 5, 2, 9]])  # items 4 5, and item 9
  segments = jnp.array([[1, 1, 1, 1, 2, 2]])
  logits = jax.jit(model.apply)(
    {"params": params},
    row,
    jnp.zeros_like(row),
    input_segment_ids=segments,
    decoder_segment_ids=segments,
  )
  before, own = logits
  np.testing.assert_allclose(own[0, 1], _forward(params, [4, 5]), atol=1e-5)
  np.testing.assert_allclose(own[0, 2], _forward(params, [9]), atol=1e-5)
  np.testing.assert_array_equal(before, np.zeros((1, 3, 2)))


def test_decoding_gives_the_same_logits(model, params):
  variables = {"params": params}
  want = model.apply(variables, INPUTS, TARGETS)
  encoded = model.apply(variables, INPUTS, method="encode")
  context = model.apply(variables, encoded, INPUTS, method="start_decode")
  cache = model.init_cache(2, 2)
  for level in range(2):
    logits, cache = model.apply(
      variables,
      TARGETS[:, level : level + 1],
      cache,
      context,
      level=level,
      method="decode_step",
    )
    np.testing.assert_allclose(logits, want[level], atol=1e-6)


def test_dropout_is_drawn_and_every_parameter_learns(model, params):
  def loss(params, key):
    logits = model.apply(
      {"params": params},
      INPUTS,
      TARGETS,
      deterministic=False,
      dropout_rate=jnp.float32(0.5),
      rngs={"dropout": key},
    )
    return jnp.sum(jnp.sin(logits[-1]))

  step = jax.jit(jax.value_and_grad(loss))
  one, grads = step(params, jax.random.key(0))
  two, _ = step(params, jax.random.key(1))
  assert one != two
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.abs(grad).max() > 0, path
  logical_axes(params)  # every parameter has its axes


def test_items_of_one_token_are_refused():
  model = SASRec(CONFIG, RANGES[1:], max_history=3)
  with pytest.raises(checks.InputError, match="collisions.name='sparse_id'"):
    model.init(jax.random.key(0), INPUTS, TARGETS)
