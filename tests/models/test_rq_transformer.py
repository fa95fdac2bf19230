"""RQ-Transformer: a slow NumPy forward, packing, decoding, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.models import RQTransformer, T5Config, logical_axes, shift_right
from gr_jax.training import losses

LEVELS = 2
RANGES = ((2, 4), (6, 5))  # tokens 2 to 5 are the first level's
CONFIG = T5Config(
  vocab_size=11,
  emb_dim=8,
  num_heads=2,
  head_dim=4,
  mlp_dim=6,
  mlp_activations=("relu",),
  num_encoder_layers=2,
  num_decoder_layers=1,
  relpos_buckets=8,
  relpos_max_distance=16,
)
# Users with three items and with one; EOS and padding follow.
INPUTS = jnp.array([[2, 6, 3, 7, 4, 8, 1], [5, 9, 1, 0, 0, 0, 0]])
NEXT = jnp.array([[3, 9], [2, 10]])
# The item after each: of the first user's three, of the second's one.
EVERY = jnp.array([[3, 7, 4, 8, 3, 9], [2, 10, 0, 0, 0, 0]])


@pytest.fixture(scope="module")
def model():
  return RQTransformer(CONFIG, RANGES)


@pytest.fixture(scope="module")
def params(model):
  return jax.jit(model.init)(jax.random.key(0), INPUTS, NEXT)["params"]


def _norm(x, part):
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * part["scale"]


def _layer(x, layer, bias):
  """One causal layer over a sequence [S, E], heads one by one."""
  y = _norm(x, layer["pre_self_attention_layer_norm"])
  kernels = {k: v["kernel"] for k, v in layer["self_attention"].items()}
  heads = []
  for head in range(2):
    part = slice(4 * head, 4 * head + 4)
    q, k, v = (y @ kernels[n][:, part] for n in ("query", "key", "value"))
    logits = q @ k.T
    for i in range(len(x)):
      for j in range(len(x)):
        logits[i, j] += bias[head, min(max(i - j, 0), 3)]
        if j > i:
          logits[i, j] = -np.inf
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    heads.append(weights / weights.sum(-1, keepdims=True) @ v)
  x = x + np.concatenate(heads, axis=1) @ kernels["out"]
  y = _norm(x, layer["pre_mlp_layer_norm"])
  hidden = np.maximum(y @ layer["mlp"]["wi"]["kernel"], 0)
  return x + hidden @ layer["mlp"]["wo"]["kernel"]


def _forward(params, items, target):
  """Logits of all tokens for one user's next item, in plain NumPy.

  Sequences of up to four, where a distance is its own bucket.
  """
  params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  encoder, decoder = params["encoder"], params["decoder"]
  x = encoder["token_embedder"]["embedding"][np.array(items)].sum(axis=1)
  x = x * np.sqrt(8)
  for index in range(2):
    bias = encoder["relpos_bias"]["rel_embedding"]
    x = _layer(x, encoder[f"layers_{index}"], bias)
  wanted = _norm(x, encoder["encoder_norm"])[-1]
  tokens = [0, *target[:-1]]
  y = wanted + decoder["token_embedder"]["embedding"][tokens] * np.sqrt(8)
  y = _layer(y, decoder["layers_0"], decoder["relpos_bias"]["rel_embedding"])
  y = _norm(y, decoder["decoder_norm"])
  return y @ decoder["logits_dense"]["kernel"]


def _check(logits, row, item, want):
  """Compares an item's logits with those of all tokens, each at its level."""
  for level, (first, count) in enumerate(RANGES):
    np.testing.assert_allclose(
      logits[level][row, item], want[level, first : first + count], atol=1e-5
    )


def test_logits_are_those_of_plain_numpy(model, params):
  logits = model.apply({"params": params}, INPUTS, shift_right(NEXT))
  assert [own.shape for own in logits] == [(2, 1, 4), (2, 1, 5)]
  want = _forward(params, [[2, 6], [3, 7], [4, 8]], [3, 9])
  _check(logits, 0, 0, want)
  _check(logits, 1, 0, _forward(params, [[5, 9]], [2, 10]))


def test_every_item_is_judged_as_if_it_were_the_newest(model, params):
  logits = model.apply({"params": params}, INPUTS, shift_right(EVERY))
  items = [[2, 6], [3, 7], [4, 8]]
  for last, target in enumerate([[3, 7], [4, 8], [3, 9]]):
    want = _forward(params, items[: last + 1], target)
    _check(logits, 0, last, want)


def test_packed_users_do_not_see_each_other(model, params):
  row = jnp.array([[2, 6, 3, 7, 4, 8, 5, 9]])
  targets = jnp.array([[3, 7, 4, 8, 3, 9, 2, 10]])
  segments = jnp.array([[1, 1, 1, 1, 1, 1, 2, 2]])
  got = model.apply(
    {"params": params},
    row,
    shift_right(targets, segments),
    input_segment_ids=segments,
    decoder_segment_ids=segments,
  )
  want = model.apply({"params": params}, INPUTS, shift_right(EVERY))
  for packed, alone in zip(got, want, strict=True):
    np.testing.assert_allclose(packed[0, :3], alone[0], atol=1e-5)
    np.testing.assert_allclose(packed[0, 3:], alone[1, :1], atol=1e-5)


def test_it_learns_as_if_other_levels_were_impossible(model, params):
  # Every level's "codes" are all tokens: the whole head at every position. A
  # finite impossible, as padding's target is token 0, weighted by 0.
  full = RQTransformer(CONFIG, ((0, 11),) * LEVELS)
  token = jnp.arange(11)

  def of_all(params):
    logits = full.apply({"params": params}, INPUTS, shift_right(EVERY))
    masked = [
      jnp.where((token >= a) & (token < a + k), own, -1e9)
      for own, (a, k) in zip(logits, RANGES, strict=True)
    ]
    logits = jnp.stack(masked, axis=2).reshape(2, 6, 11)
    terms = losses.token_cross_entropy(logits, EVERY)
    return terms.loss, terms

  def of_own(params):
    logits = model.apply({"params": params}, INPUTS, shift_right(EVERY))
    terms = losses.level_cross_entropy(logits, EVERY, code_ranges=RANGES)
    return terms.loss, terms

  grads, terms = jax.jit(jax.grad(of_own, has_aux=True))(params)
  want_grads, want = jax.jit(jax.grad(of_all, has_aux=True))(params)
  assert float(terms.tokens) == 8  # padded targets count for nothing
  for got, other in ((terms, want), (grads, want_grads)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
      got,
      other,
    )


def test_decoding_gives_the_same_logits(model, params):
  variables = {"params": params}
  tokens = shift_right(NEXT)
  want = model.apply(variables, INPUTS, tokens)
  encoded = model.apply(variables, INPUTS, method="encode")
  context = model.apply(variables, encoded, INPUTS, method="start_decode")
  cache = model.init_cache(2, LEVELS)
  for level in range(LEVELS):
    logits, cache = model.apply(
      variables,
      tokens[:, level : level + 1],
      cache,
      context,
      level=level,
      method="decode_step",
    )
    np.testing.assert_allclose(logits, want[level], atol=1e-5)


def test_score_is_the_sum_of_the_codes(model, params):
  variables = {"params": params}
  # Padding counts for nothing; 6 is no code of the first level.
  targets = NEXT.at[1].set(jnp.array([2, 0]))
  got = model.apply(variables, INPUTS, targets, method="score")
  levels = model.apply(variables, INPUTS, shift_right(targets))
  coarse, fine = (jax.nn.log_softmax(own) for own in levels)
  np.testing.assert_allclose(got[0], coarse[0, 0, 1] + fine[0, 0, 3], atol=1e-5)
  np.testing.assert_allclose(got[1], coarse[1, 0, 0], atol=1e-5)
  foreign = NEXT.at[1, 0].set(6)
  got = model.apply(variables, INPUTS, foreign, method="score")
  assert got[0] > got[1] == -np.inf


def test_the_direct_path_needs_no_codes_before_the_last(params):
  model = RQTransformer(CONFIG, RANGES, direct_codes=5)
  variables = {"params": params}  # the same as without
  logits = model.apply(variables, INPUTS, shift_right(EVERY))
  plain = RQTransformer(CONFIG, RANGES).apply(
    variables, INPUTS, shift_right(EVERY)
  )
  for own, other in zip(logits[:-1], plain, strict=True):
    np.testing.assert_array_equal(own, other)
  # From where the first code is predicted, and whatever the codes are.
  first, count = RANGES[-1]
  want = _forward(params, [[2, 6], [3, 7]], [4, 8])[0, first : first + count]
  np.testing.assert_allclose(logits[-1][0, 1], want, atol=1e-5)
  others = model.apply(variables, INPUTS, shift_right(EVERY[:, ::-1]))
  np.testing.assert_array_equal(logits[-1], others[-1])
  # Decoding gives the same.
  encoded = model.apply(variables, INPUTS, method="encode")
  got = model.apply(variables, encoded, method="direct_log_probs")
  newest = jnp.stack([logits[-1][0, 2], logits[-1][1, 0]])
  np.testing.assert_allclose(got, jax.nn.log_softmax(newest), atol=1e-5)
  # An item's probability is the mean of both paths'.
  score = model.apply(variables, INPUTS, NEXT, method="score")
  codes = RQTransformer(CONFIG, RANGES).apply(
    variables, INPUTS, NEXT, method="score"
  )
  want = [
    (np.exp(codes[i]) + np.exp(got[i, n])) / 2 for i, n in ((0, 3), (1, 4))
  ]
  np.testing.assert_allclose(np.exp(score), want, rtol=1e-4)


def test_numbers_of_items_to_come_have_no_direct_path(params):
  variables = {"params": params}
  whole, part = (RQTransformer(CONFIG, RANGES, n) for n in (5, 3))
  encoded = whole.apply(variables, INPUTS, method="encode")
  every = whole.apply(variables, encoded, method="direct_log_probs")
  got = part.apply(variables, encoded, method="direct_log_probs")
  np.testing.assert_allclose(
    got[:, :3], jax.nn.log_softmax(every[:, :3]), atol=1e-5
  )
  assert (got[:, 3:] == -np.inf).all()
  # Codes 3 and 4 of the last level: half of what the codes' path gives them.
  score = part.apply(variables, INPUTS, NEXT, method="score")
  codes = RQTransformer(CONFIG, RANGES).apply(
    variables, INPUTS, NEXT, method="score"
  )
  np.testing.assert_allclose(score, codes - np.log(2), atol=1e-5)
  for bad in (-1, 6):
    with pytest.raises(checks.InputError, match=f"direct_codes={bad} must lie"):
      RQTransformer(CONFIG, RANGES, bad).apply(variables, INPUTS, NEXT)


def test_dropout_is_drawn_and_every_parameter_learns(model, params):
  def loss(params, key):
    logits = model.apply(
      {"params": params},
      INPUTS,
      shift_right(EVERY),
      deterministic=False,
      dropout_rate=jnp.float32(0.3),
      rngs={"dropout": key},
    )
    return sum(jnp.sum(jnp.sin(own)) for own in logits)

  step = jax.jit(jax.value_and_grad(loss))
  one, grads = step(params, jax.random.key(0))
  two, _ = step(params, jax.random.key(1))
  assert one != two
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    assert np.abs(grad).max() > 0, path
  logical_axes(params)  # every parameter has its axes


def test_the_head_may_be_tied():
  model = RQTransformer(
    T5Config(vocab_size=11, emb_dim=8, logits_via_embedding=True), RANGES
  )
  params = jax.jit(model.init)(jax.random.key(0), INPUTS, NEXT)["params"]
  assert "logits_dense" not in params["decoder"]
  # A scaled table is the head as it stands.
  untied = RQTransformer(T5Config(vocab_size=11, emb_dim=8), RANGES)
  head = params["decoder"]["token_embedder"]["embedding"].T
  copied = {**params["decoder"], "logits_dense": {"kernel": head}}
  copied = {**params, "decoder": copied}
  got = jax.jit(model.apply)({"params": params}, INPUTS, NEXT)
  want = jax.jit(untied.apply)({"params": copied}, INPUTS, NEXT)
  for own, other in zip(got, want, strict=True):
    np.testing.assert_allclose(own, other, atol=1e-5)


@pytest.mark.parametrize("bad", [(-1, 3), (6, 0), (6, 6)])
def test_codes_without_tokens_are_refused(bad):
  model = RQTransformer(CONFIG, (RANGES[0], bad))
  with pytest.raises(
    checks.InputError, match=r"code_ranges\[1\]=.* not lie within .* 11 tokens"
  ):
    model.init(jax.random.key(0), INPUTS, NEXT)


def test_targets_of_no_number_of_items_are_refused(model, params):
  for tokens in (jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 8), jnp.int32)):
    with pytest.raises(checks.InputError, match="neither one item of 2 nor"):
      model.apply({"params": params}, INPUTS, tokens)
