"""Hugging Face's T5 folders, against golden logits and `transformers`."""

import dataclasses
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from gr_jax.core import checks
from gr_jax.integrations import huggingface
from gr_jax.models import EncoderDecoder, T5Config

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SMALL = T5Config(
  vocab_size=12,
  emb_dim=4,
  num_heads=2,
  head_dim=3,
  mlp_dim=6,
  num_encoder_layers=1,
  num_decoder_layers=2,
)


def _script():
  path = GOLDEN / "write_huggingface_t5.py"
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


SCRIPT = _script()


def _logits(config, params, inputs, decoder_inputs):
  apply = jax.jit(
    lambda params, *batch: EncoderDecoder(config).apply(
      {"params": params}, *batch, deterministic=True
    )
  )
  return np.asarray(
    apply(params, jnp.asarray(inputs), jnp.asarray(decoder_inputs))
  )


def _params(config, seed=0):
  tokens = jnp.ones((1, 2), jnp.int32)
  return EncoderDecoder(config).init(
    jax.random.key(seed), tokens, tokens, deterministic=True
  )["params"]


def _write(folder, golden, *, change=lambda weights, config: None):
  """A folder as `save_pretrained` of `transformers` lays it out."""
  folder.mkdir()
  weights = {
    name: SCRIPT.made_up(name, tuple(shape))
    for name, shape in golden["shapes"].items()
  }
  config = dict(golden["config"])
  change(weights, config)
  (folder / "config.json").write_text(json.dumps(config))
  safetensors_numpy.save_file(weights, folder / "model.safetensors")
  return folder


@pytest.fixture(scope="module")
def golden():
  return json.loads((GOLDEN / "huggingface_t5.json").read_text())


@pytest.mark.parametrize("variant", SCRIPT.VARIANTS)
def test_logits_are_those_of_transformers(golden, variant, tmp_path):
  folder = _write(tmp_path / "theirs", golden[variant])
  config = huggingface.read_config(folder)
  assert (config.emb_dim, config.mlp_dim, config.num_encoder_layers) == (
    8,
    12,
    2,
  )
  assert config.logits_via_embedding == (variant == "t5_1_0")
  params = huggingface.load_params(folder, config)
  logits = _logits(config, params, SCRIPT.INPUTS, SCRIPT.DECODER_INPUTS)
  want = np.array(golden[variant]["logits"])
  assert np.ptp(want) > 0.5
  np.testing.assert_allclose(logits, want, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_written_is_read(tied, tmp_path):
  config = dataclasses.replace(SMALL, logits_via_embedding=tied)
  params = _params(config)
  folder = huggingface.save_params(tmp_path / "a" / "ours", params, config)
  names = {path.name for path in folder.iterdir()}
  assert names == {"config.json", "model.safetensors"}
  assert [path.name for path in folder.parent.iterdir()] == ["ours"]
  assert huggingface.read_config(folder) == config
  jax.tree.map(
    np.testing.assert_array_equal,
    huggingface.load_params(folder, config),
    params,
  )
  weights = safetensors_numpy.load_file(folder / "model.safetensors")
  assert ("lm_head.weight" in weights) != tied
  kernel = params["encoder"]["layers_0"]["mlp"]["wi_1"]["kernel"]  # [E, M]
  theirs = weights["encoder.block.0.layer.1.DenseReluDense.wi_1.weight"]
  np.testing.assert_array_equal(theirs, np.asarray(kernel).T)


def test_old_and_large_checkpoints_are_read(golden, tmp_path):
  """bfloat16, several files, repeated embeddings, an unused weight."""
  folder = _write(tmp_path / "one", golden["t5_1_1"])
  config = huggingface.read_config(folder)
  want = huggingface.load_params(folder, config)
  weights = safetensors_numpy.load_file(folder / "model.safetensors")
  weights["decoder.embed_tokens.weight"] = weights["shared.weight"]
  unused = (
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
  )
  weights[unused] = np.zeros((32, 2), np.float32)
  shards = tmp_path / "many"
  shards.mkdir()
  (shards / "config.json").write_text((folder / "config.json").read_text())
  where = {}
  for part in (0, 1):
    file = f"model-{part}.safetensors"
    names = sorted(weights)[part::2]
    safetensors_numpy.save_file(
      {name: weights[name].astype(ml_dtypes.bfloat16) for name in names},
      shards / file,
    )
    where |= dict.fromkeys(names, file)
  index = shards / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
  found = huggingface.load_params(shards, config)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b.astype(ml_dtypes.bfloat16))
  (shards / "model-1.safetensors").unlink()
  with pytest.raises(checks.InputError, match=r"model-1.* is missing, though"):
    huggingface.load_params(shards, config)


def test_a_scaled_head_of_its_own_is_divided(golden, tmp_path):
  def change(weights, config):
    config["tie_word_embeddings"] = True
    del config["scale_decoder_outputs"]  # as before transformers 5

  scaled = _write(tmp_path / "scaled", golden["t5_1_1"], change=change)
  plain = _write(tmp_path / "plain", golden["t5_1_1"])
  config = huggingface.read_config(plain)
  assert huggingface.read_config(scaled) == config
  heads = [
    huggingface.load_params(folder, config)["decoder"]["logits_dense"]["kernel"]
    for folder in (scaled, plain)
  ]
  np.testing.assert_allclose(heads[0] * np.sqrt(8), heads[1], rtol=1e-6)


def test_other_weights_are_refused_by_name(golden, tmp_path):
  def refused(change, match):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    _write(folder, golden["t5_1_1"], change=change)
    with pytest.raises(checks.InputError, match=match) as error:
      huggingface.load_params(folder, huggingface.read_config(folder))
    assert "\n" not in str(error.value)

  def other_embedding(weights, config):
    weights["decoder.embed_tokens.weight"] = weights["shared.weight"] + 1

  refused(
    lambda weights, config: weights.pop("encoder.final_layer_norm.weight"),
    r"lacks the weight 'encoder\.final_layer_norm\.weight'",
  )
  refused(
    lambda weights, config: weights.pop("shared.weight"),
    r"lacks the weight 'shared\.weight'",
  )
  refused(
    lambda weights, config: weights.update(bias=np.zeros(2)),
    r"has a weight 'bias' that T5 has not",
  )
  refused(other_embedding, r"'decoder\.embed_tokens\.weight' of its own")
  refused(
    lambda weights, config: config.update(d_ff=13),
    r"wi_0\.weight' .*has shape \(12, 8\), but config\.json makes it \(13, 8\)",
  )
  refused(
    lambda weights, config: config.update(vocab_size=21),
    r"'shared\.weight' .*\(20, 8\), but .*\(21, 8\)",
  )
  refused(
    lambda weights, config: config.update(model_type="umt5"),
    r"type 'umt5'; only 't5' and 'mt5'",
  )
  refused(
    lambda weights, config: config.update(feed_forward_proj="gelu"),
    r"feed_forward_proj 'gelu'",
  )
  refused(
    lambda weights, config: config.update(layer_norm_epsilon=1e-5),
    r"layer_norm_epsilon=1e-05; this network has 1e-06",
  )
  refused(
    lambda weights, config: config.pop("d_kv"),
    r"config\.json' lacks 'd_kv'",
  )


def test_other_folders_and_networks_are_refused(golden, tmp_path):
  with pytest.raises(checks.InputError, match=r"No config\.json in .*none'"):
    huggingface.read_config(tmp_path / "none")
  folder = _write(tmp_path / "theirs", golden["t5_1_1"])
  config = huggingface.read_config(folder)
  for change, match in (
    ({"emb_dim": 16}, r"has emb_dim=8 \(d_model\), the network 16"),
    ({"logits_via_embedding": True}, r"\(tie_word_embeddings\), the network T"),
    ({"mlp_activations": ("relu",)}, r"mlp_activations=\('gelu', 'linear'\)"),
  ):
    with pytest.raises(checks.InputError, match=match):
      huggingface.load_params(folder, dataclasses.replace(config, **change))
  with pytest.raises(checks.InputError, match=r"theirs' exists; name another"):
    huggingface.save_params(folder, {}, config)
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(checks.InputError, match=r"safetensors' is damaged \("):
    huggingface.load_params(folder, config)
  file.unlink()
  with pytest.raises(checks.InputError, match=r"No model\.safetensors in "):
    huggingface.load_params(folder, config)
  (folder / "config.json").write_text("{")
  with pytest.raises(checks.InputError, match=r"config\.json' is no JSON"):
    huggingface.read_config(folder)


def test_what_transformers_lacks_is_not_written(tmp_path):
  params = _params(SMALL)
  wider = dataclasses.replace(SMALL, mlp_dim=7)
  with pytest.raises(checks.InputError, match=r"'decoder/layers_0/mlp/wi_0/k"):
    huggingface.save_params(tmp_path / "x", params, wider)
  for change, match in (
    ({"mlp_activations": ("linear", "gelu")}, r"has no mlp_activations=\('li"),
    ({"num_encoder_layers": 0}, r"need num_encoder_layers >= 1, got 0"),
  ):
    config = dataclasses.replace(SMALL, **change)
    with pytest.raises(checks.InputError, match=match):
      huggingface.save_params(tmp_path / "x", _params(config), config)
  assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", SCRIPT.VARIANTS)
def test_transformers_itself_agrees_both_ways(variant, tmp_path):
  torch = pytest.importorskip(
    "torch", reason="torch is not installed; pip install -e '.[huggingface]'"
  )
  transformers = pytest.importorskip("transformers")
  torch.manual_seed(0)
  # Theirs, with random weights as they draw them, saved by themselves.
  model = SCRIPT.make_model(SCRIPT.VARIANTS[variant])
  with torch.no_grad():
    for weight in model.parameters():
      weight.normal_(0.1, 0.6)
  want = SCRIPT.logits_of(model)
  model.save_pretrained(tmp_path / "theirs")
  config = huggingface.read_config(tmp_path / "theirs")
  params = huggingface.load_params(tmp_path / "theirs", config)
  batch = SCRIPT.INPUTS, SCRIPT.DECODER_INPUTS
  assert np.ptp(want) > 1
  np.testing.assert_allclose(
    _logits(config, params, *batch), want, atol=1e-4, rtol=1e-4
  )
  # Ours, read by them.
  params = jax.tree.map(
    lambda x: np.asarray(x) * np.float32(1.5), _params(config, seed=1)
  )
  folder = huggingface.save_params(tmp_path / "ours", params, config)
  theirs, report = transformers.T5ForConditionalGeneration.from_pretrained(
    folder, output_loading_info=True
  )
  assert not report["missing_keys"]
  assert not report["unexpected_keys"]
  np.testing.assert_allclose(
    SCRIPT.logits_of(theirs.eval()),
    _logits(config, params, *batch),
    atol=1e-4,
    rtol=1e-4,
  )
