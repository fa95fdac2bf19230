import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.models import (
  DecoderOnly,
  EncoderDecoder,
  T5Config,
  decoder_only,
  logical_axes,
  shift_right,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"

SMALL = T5Config(
  vocab_size=23,
  emb_dim=8,
  num_heads=2,
  num_encoder_layers=2,
  num_decoder_layers=2,
  head_dim=4,
  mlp_dim=12,
)
# Compiling is what these tests spend their time on.
FAST = {"xla_backend_optimization_level": 0}
INPUTS = jnp.array([[3, 19, 4, 5, 1, 0, 0], [8, 2, 6, 7, 9, 11, 1]])
TARGETS = jnp.array([[4, 9, 2, 12], [7, 3, 13, 5]])


@functools.cache
def _model(kind=EncoderDecoder, **changes):
  """A model and made-up parameters, none of them at its initial value."""
  model = kind(dataclasses.replace(SMALL, **changes))
  shapes = jax.eval_shape(model.init, jax.random.key(1), INPUTS, TARGETS)
  generator = np.random.default_rng(5)

  def fill(path, leaf):
    noise = generator.standard_normal(leaf.shape).astype(np.float32)
    return 1 + 0.2 * noise if path[-1].key == "scale" else 0.4 * noise

  params = jax.tree_util.tree_map_with_path(fill, shapes["params"])
  return model, jax.tree.map(jnp.asarray, params)


@functools.cache
def _compiled(model, method, options):
  def apply(params, *args):
    return model.apply(
      {"params": params}, *args, method=method, **dict(options)
    )

  return jax.jit(apply, compiler_options=FAST)


def _run(model, params, *args, method="__call__", **options):
  return _compiled(model, method, tuple(options.items()))(params, *args)


def _golden_script():
  path = GOLDEN / "write_t5x_network.py"
  spec = importlib.util.spec_from_file_location("write_t5x_network", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  "variant", ["gated_untied", "relu_tied", "decoder_only"]
)
def test_names_shapes_and_logits_are_those_of_t5x(variant):
  script = _golden_script()
  golden = json.loads((GOLDEN / "t5x_network.json").read_text())[variant]
  if variant == "decoder_only":
    cfg = T5Config(**{**script.SIZES, "num_decoder_layers": 2})
    model = DecoderOnly(cfg)
  else:
    model = EncoderDecoder(T5Config(**script.SIZES, **script.VARIANTS[variant]))
  inputs, targets = jnp.asarray(script.INPUTS), jnp.asarray(script.TARGETS)
  batch = (inputs, shift_right(targets))
  shapes = jax.eval_shape(model.init, jax.random.key(0), *batch)["params"]
  named = {
    "/".join(entry.key for entry in path): list(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }
  assert named == golden["shapes"]
  logits = _run(model, script.made_up_params(shapes), *batch)
  assert logits.dtype == jnp.float32
  # T5X also masks queries of padded targets; nobody reads those rows.
  real = np.asarray(targets) > 0
  expected = np.asarray(golden["logits"])
  assert np.ptp(expected[real]) > 0.5
  np.testing.assert_allclose(logits[real], expected[real], atol=1e-5)


def test_one_head_by_hand():
  # One layer each, width 1: RMSNorm makes every activation +1 or -1.
  cfg = T5Config(
    vocab_size=4,
    emb_dim=1,
    num_heads=1,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=1,
    mlp_dim=1,
    mlp_activations=("relu",),
  )
  model = EncoderDecoder(cfg)
  inputs, decoder_inputs = jnp.array([[2, 3, 0]]), jnp.array([[0]])
  params = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32),
    jax.eval_shape(model.init, jax.random.key(0), inputs, decoder_inputs)[
      "params"
    ],
  )
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf + 1 if path[-1].key == "scale" else leaf, params
  )
  params["token_embedder"]["embedding"][:, 0] = [5, 7, 2, -3]
  params["decoder"]["logits_dense"]["kernel"][0] = [0, 1, 2, -1]
  cross = params["decoder"]["layers_0"]["encoder_decoder_attention"]

  def apply():
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    return jax.jit(model.apply, compiler_options=FAST)(
      variables, inputs, decoder_inputs
    )[0, 0]

  # Queries are 1, keys are +-1: weights e / (e + 1/e) on token 2.
  for name, value in {"query": 1, "key": 1, "value": 10, "out": 1}.items():
    cross[name]["kernel"][:] = value
  # encoded = (1, -1); heads = 10 (e - 1/e) / (e + 1/e) = 10 tanh 1;
  # x = 5 + 10 tanh 1 > 0, which the last norm turns into 1.
  np.testing.assert_allclose(apply(), [0, 1, 2, -1], rtol=1e-5)
  # Nine times the other sign: x = 5 - 90 tanh 1 < 0.
  cross["out"]["kernel"][:] = -9
  np.testing.assert_allclose(apply(), [0, -1, -2, 1], rtol=1e-5)
  # 10 tanh 1 = 7.616 flips the sign at out = -5 / 7.616 = -0.6565.
  for out, sign in ((-0.656, 1), (-0.657, -1)):
    cross["out"]["kernel"][:] = out
    np.testing.assert_allclose(np.sign(apply()[1]), sign)


BOTH = pytest.mark.parametrize("kind", [EncoderDecoder, DecoderOnly])


@pytest.mark.parametrize(
  ("kind", "tied", "dtype", "tolerance"),
  [
    (EncoderDecoder, False, "float32", 2e-5),
    (EncoderDecoder, True, "bfloat16", 0.1),
    (DecoderOnly, False, "float32", 2e-5),
    (DecoderOnly, True, "float32", 2e-5),
  ],
)
def test_decode_steps_equal_teacher_forcing(kind, tied, dtype, tolerance):
  model, params = _model(kind, logits_via_embedding=tied, dtype=dtype)
  beams = jnp.array([[[4, 9, 2, 12], [4, 9, 1, 8], [5, 3, 3, 3]]] * 2)
  beams = beams.at[1].add(7)  # [B, W, T]
  context = _run(
    model,
    params,
    _run(model, params, INPUTS, method="encode"),
    INPUTS,
    method="start_decode",
  )
  assert context.memory[0].key.shape == (2, 7, 2, 4)
  cache = model.init_cache(2, 4)
  assert jax.tree.leaves(cache)[0].shape == (2, 1, 4, 2, 4)
  expected = _run(
    model,
    params,
    jnp.repeat(INPUTS, 3, axis=0),
    shift_right(beams.reshape(6, 4)),
  ).reshape(2, 3, 4, -1)  # [B, W, T, V]
  tokens = shift_right(beams)
  for level in range(4):
    width = 1 if level == 0 else 3
    logits, cache = _run(
      model,
      params,
      tokens[:, :width, level],
      cache,
      context,
      level=level,
      method="decode_step",
    )
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(
      logits, expected[:, :width, level], atol=tolerance
    )
    if level == 0:  # what a beam search does when it widens
      cache = jax.tree.map(lambda leaf: jnp.repeat(leaf, 3, axis=1), cache)


@BOTH
def test_permuted_beams_give_permuted_logits(kind):
  model, params = _model(kind)
  encoded = _run(model, params, INPUTS, method="encode")
  context = _run(model, params, encoded, INPUTS, method="start_decode")
  generator = np.random.default_rng(0)
  cache = jax.tree.map(
    lambda leaf: jnp.asarray(
      generator.standard_normal((2, 3, *leaf.shape[2:])), jnp.float32
    ),
    model.init_cache(2, 4),
  )
  tokens = jnp.array([[3, 4, 5], [6, 7, 8]])
  order = jnp.array([2, 0, 1])
  step = functools.partial(_run, model, params, level=2, method="decode_step")
  logits, after = step(tokens, cache, context)
  moved = step(
    tokens[:, order], jax.tree.map(lambda x: x[:, order], cache), context
  )
  np.testing.assert_allclose(moved[0], logits[:, order], atol=1e-5)
  for one, other in zip(
    jax.tree.leaves(moved[1]), jax.tree.leaves(after), strict=True
  ):
    np.testing.assert_allclose(one, other[:, order], atol=1e-5)
  # A beam's logits do not depend on the beams beside it.
  alone = step(
    tokens[:, 1:2], jax.tree.map(lambda x: x[:, 1:2], cache), context
  )
  np.testing.assert_allclose(alone[0], logits[:, 1:2], atol=1e-5)


@BOTH
def test_padding_changes_nothing(kind):
  model, params = _model(kind)
  tokens = shift_right(TARGETS)
  logits = _run(model, params, INPUTS, tokens)
  padded = jnp.pad(INPUTS, ((0, 0), (0, 9)))
  np.testing.assert_allclose(
    _run(model, params, padded, tokens), logits, atol=1e-5
  )
  np.testing.assert_allclose(
    _run(model, params, INPUTS, jnp.pad(tokens, ((0, 0), (0, 3))))[:, :4],
    logits,
    atol=1e-5,
  )


@BOTH
def test_logits_depend_on_no_later_token(kind):
  model, params = _model(kind)
  tokens = shift_right(TARGETS)
  logits = _run(model, params, INPUTS, tokens)
  for position in range(1, 4):
    changed = _run(model, params, INPUTS, tokens.at[:, position].set(20))
    np.testing.assert_array_equal(changed[:, :position], logits[:, :position])
    assert np.abs(changed[:, position] - logits[:, position]).max() > 1e-3


def test_packed_examples_equal_separate_ones():
  model, params = _model()
  first, second = INPUTS[0, :5], INPUTS[1]
  packed = jnp.concatenate([first, second, jnp.zeros(2, jnp.int32)])[None]
  input_segments = jnp.array([[1] * 5 + [2] * 7 + [0] * 2])
  tokens = shift_right(TARGETS)
  apply = jax.jit(model.apply, compiler_options=FAST)
  logits = apply(
    {"params": params},
    packed,
    tokens.reshape(1, 8),
    input_segment_ids=input_segments,
    decoder_segment_ids=jnp.array([[1] * 4 + [2] * 4]),
  )
  separate = _run(model, params, INPUTS, tokens)
  np.testing.assert_allclose(logits.reshape(2, 4, -1), separate, atol=1e-5)


def test_score_is_the_sum_of_log_probabilities():
  model, params = _model()
  targets = TARGETS.at[1, 2:].set(0)
  scores = _run(model, params, INPUTS, targets, method="score")
  log_probs = np.asarray(
    jax.nn.log_softmax(_run(model, params, INPUTS, shift_right(targets)))
  )
  for row, length in ((0, 4), (1, 2)):
    expected = sum(
      log_probs[row, t, int(targets[row, t])] for t in range(length)
    )
    np.testing.assert_allclose(scores[row], expected, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_bfloat16_gradients_are_finite_and_reach_every_parameter(shared, key):
  model, params = _model(
    EncoderDecoder if shared else DecoderOnly,
    dtype="bfloat16",
    dropout_shared=shared,
    num_encoder_layers=1,
    num_decoder_layers=1 if shared else 2,
  )

  def loss(params, rate):
    logits = model.apply(
      {"params": params},
      INPUTS.at[0].set(0),  # a user without history
      shift_right(TARGETS),
      deterministic=False,
      dropout_rate=rate,
      rngs={"dropout": key},
    )
    log_probs = jax.nn.log_softmax(logits)
    return -jnp.mean(
      jnp.take_along_axis(log_probs, TARGETS[..., None], axis=-1)
    )

  gradients = jax.jit(jax.grad(loss), compiler_options=FAST)(
    params, jnp.float32(0.2)
  )
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    assert leaf.dtype == jnp.float32
    assert np.isfinite(leaf).all(), path
    assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize("shared", [True, False])
def test_dropout_keeps_the_mean_and_the_rate(shared, key):
  model, params = _model(
    dropout_shared=shared, num_encoder_layers=1, num_decoder_layers=1
  )
  tokens = shift_right(TARGETS)

  def apply(key, rate):
    return model.apply(
      {"params": params},
      INPUTS,
      tokens,
      deterministic=False,
      dropout_rate=rate,
      rngs={"dropout": key},
    )

  # A traced rate: replicas of different rates share one program.
  rates = jnp.array([0.0, 0.3, 0.3])
  keys = jnp.stack([jax.random.fold_in(key, n) for n in (0, 1, 1)])
  logits = jax.jit(jax.vmap(apply), compiler_options=FAST)(keys, rates)
  np.testing.assert_allclose(
    logits[0], _run(model, params, INPUTS, tokens), atol=1e-5
  )
  assert np.abs(logits[1] - logits[0]).max() > 0.1
  np.testing.assert_array_equal(logits[1], logits[2])


def test_parameter_count_of_the_published_size():
  cfg = T5Config(vocab_size=1026)
  shapes = jax.eval_shape(
    EncoderDecoder(cfg).init, jax.random.key(0), INPUTS, TARGETS
  )["params"]
  attention_size = 4 * 128 * 384
  mlp_size = 3 * 128 * 1024
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == (
    2 * 1026 * 128  # embedding and head
    + 4 * (attention_size + mlp_size + 2 * 128)
    + 4 * (2 * attention_size + mlp_size + 3 * 128)
    + 2 * 128  # last norms
    + 2 * 6 * 32  # position biases
  )


def test_initial_scales():
  cfg = T5Config(
    vocab_size=64,
    emb_dim=64,
    num_heads=4,
    num_encoder_layers=1,
    num_decoder_layers=1,
    mlp_dim=128,
  )
  init = jax.jit(EncoderDecoder(cfg).init, compiler_options=FAST)
  params = init(jax.random.key(0), INPUTS, TARGETS)["params"]
  layer = params["encoder"]["layers_0"]
  for array, std in (
    (params["token_embedder"]["embedding"], 1),
    (layer["attention"]["query"]["kernel"], 1 / 8 / 8),
    (layer["attention"]["key"]["kernel"], 1 / 8),
    (layer["attention"]["out"]["kernel"], 1 / 16),
    (layer["mlp"]["wi_0"]["kernel"], 1 / 8),
    (layer["mlp"]["wo"]["kernel"], 128**-0.5),
  ):
    # Standard error of a standard deviation: std / sqrt(2 n).
    bound = 5 * std / np.sqrt(2 * array.size)
    np.testing.assert_allclose(np.std(array), std, atol=bound)
  np.testing.assert_array_equal(layer["pre_mlp_layer_norm"]["scale"], 1)


@BOTH
def test_every_parameter_has_axis_names(kind):
  for activations in (("relu",), ("gelu", "linear")):
    model = kind(dataclasses.replace(SMALL, mlp_activations=activations))
    shapes = jax.eval_shape(model.init, jax.random.key(0), INPUTS, TARGETS)[
      "params"
    ]
    axes = logical_axes(shapes)
    layer = axes["decoder"]["layers_1"]
    assert tuple(layer["self_attention"]["out"]["kernel"]) == (
      "joined_kv",
      "embed",
    )
    assert tuple(axes["decoder"]["relpos_bias"]["rel_embedding"]) == (
      "heads",
      "relpos_buckets",
    )
    jax.tree.map(lambda leaf, spec: len(leaf.shape) == len(spec), shapes, axes)


def test_unknown_parameters_have_no_axis_names():
  with pytest.raises(checks.InputError, match=r"mlp/bias \(3,\) is none"):
    logical_axes({"mlp": {"bias": jnp.zeros(3)}})


def test_misfits_are_refused():
  model, params = _model()
  with pytest.raises(checks.InputError, match="one batch size; got 2 and 1"):
    _run(model, params, INPUTS, TARGETS[:1])
  with pytest.raises(checks.InputError, match="together, or neither"):
    model.apply({"params": params}, INPUTS, TARGETS, input_segment_ids=INPUTS)
  cache = model.init_cache(2, 4)
  context = jax.eval_shape(
    lambda: model.apply(
      {"params": params},
      jnp.zeros((2, 7, 8)),
      INPUTS,
      method="start_decode",
    )
  )
  step = functools.partial(model.apply, {"params": params})
  with pytest.raises(checks.InputError, match="0 <= level < 4.*got 4"):
    step(TARGETS[:, :1], cache, context, level=4, method="decode_step")
  with pytest.raises(checks.InputError, match="re-gather the cache"):
    step(TARGETS[:, :3], cache, context, level=1, method="decode_step")


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"dtype": "float16"}, "Unknown dtype 'float16'"),
    ({"mlp_activations": ("gelo",)}, "Unknown activation 'gelo'.*'gelu'"),
    ({"mlp_activations": ()}, "one name, or two"),
    ({"vocab_size": 1}, "vocab_size >= 2; got 1"),
    ({"num_decoder_layers": 0}, "num_decoder_layers >= 1; got 0"),
    ({"relpos_buckets": 33}, "even relpos_buckets; got 33"),
    ({"relpos_max_distance": 16}, "relpos_max_distance > relpos_buckets / 2"),
    ({"dropout_rate": 1.0}, "0 <= dropout_rate < 1; got 1.0"),
  ],
)
def test_impossible_sizes_are_refused(changes, message):
  with pytest.raises(checks.InputError, match=message):
    dataclasses.replace(SMALL, **changes)


def test_align_right_moves_padding_to_the_front():
  np.testing.assert_array_equal(
    decoder_only.align_right(
      jnp.array([[3, 0, 4, 0, 0], [0] * 5, [1, 2, 3, 4, 5]])
    ),
    [[0, 0, 3, 0, 4], [0] * 5, [1, 2, 3, 4, 5]],
  )


def test_shift_right():
  np.testing.assert_array_equal(
    shift_right(jnp.array([[[4, 5, 6]]])), [[[0, 4, 5]]]
  )
