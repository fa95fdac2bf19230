"""T5X's network, models and mains with this project's tasks and decoding."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.core import checks
from gr_jax.decoding import trie as trie_lib
from gr_jax.integrations import network_shapes, t5x_checkpoints
from gr_jax.models import EncoderDecoder, T5Config, shift_right
from gr_jax.sids.vocabulary import SidVocabulary

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = pathlib.Path(__file__).parents[2]
FIXED = np.array(
  [[0, 1, 0], [0, 1, 2], [1, 0, 1], [2, 3, 0], [2, 2, 1], [3, 0, 2]], np.int32
)
VARIABLE = np.where(
  np.arange(3)[None] < [[3], [2], [1], [3], [2], [3]], FIXED, -1
)
SIZES = (4, 4, 3)


def test_without_t5x_one_line_says_how_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "t5x", None)
  monkeypatch.delitem(sys.modules, "gr_jax.integrations.t5x", raising=False)
  with pytest.raises(checks.InputError, match=r"pip install --no-deps git\+"):
    __import__("gr_jax.integrations.t5x")


@pytest.fixture
def t5x():
  """The integration, under the promotion rules that T5X's code needs."""
  pytest.importorskip("t5x", reason="T5X is not installed; see docs/t5x.md")
  from gr_jax.integrations import t5x as integration

  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
    jax.debug_key_reuse(False),
  ):
    yield integration


def _models(t5x, codes, *, num_decodes, dtype="float32"):
  """Our model, the stock one with our decode_fn, and what they share."""
  from t5x import adafactor, models
  from t5x.examples.t5 import network

  from gr_jax.tasks.seqio_vocabulary import SidSeqioVocabulary

  variable = bool((codes < 0).any())
  layout = SidVocabulary(SIZES, append_eos=variable)
  vocabulary = SidSeqioVocabulary(layout)
  trie = trie_lib.build_trie(codes, SIZES)
  config = T5Config(
    vocab_size=layout.padded_size(8),
    emb_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=12,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
    dtype=dtype,
  )
  common = {
    "module": network.Transformer(t5x.network_config(config)),
    "input_vocabulary": vocabulary,
    "output_vocabulary": vocabulary,
    "optimizer_def": adafactor.Adafactor(),
    "default_decoder_params": models.DecoderParams(
      num_decodes=num_decodes, return_all_decodes=True
    ),
  }
  ours = t5x.SidEncoderDecoderModel(**common, trie=trie)
  stock = models.EncoderDecoderModel(
    **common, decode_fn=t5x.make_decode_fn(trie, vocabulary)
  )
  return ours, stock, config, layout


def _batch(layout, num_rows=3):
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, layout.vocab_size, (num_rows, 10), dtype=np.int32)
  inputs[0, 6:] = 0
  length = layout.num_levels + int(layout.append_eos)
  targets = np.full((num_rows, length), 2, np.int32)
  return {
    "encoder_input_tokens": jnp.asarray(inputs),
    "decoder_input_tokens": jnp.asarray(shift_right(jnp.asarray(targets))),
    "decoder_target_tokens": jnp.asarray(targets),
    "decoder_loss_weights": jnp.ones_like(targets),
  }


def _params(model, batch, scale=3.0):
  shapes = {k: v.shape for k, v in batch.items()}
  variables = model.get_initial_variables(jax.random.PRNGKey(1), shapes)
  # Larger than at the start of training, so that beams differ clearly.
  return jax.tree.map(lambda x: x * scale, variables["params"])


def _tokens(codes, layout):
  """Each distinct ID as the tokens that training sees."""
  rows = np.unique(codes, axis=0)
  tokens = np.asarray(layout.tokens_from_codes(rows))
  if not layout.append_eos:
    return tokens
  tokens = np.pad(tokens, ((0, 0), (0, 1)))
  tokens[np.arange(len(rows)), (rows >= 0).sum(1)] = layout.eos_id
  return tokens


def test_the_same_parameters_give_the_same_logits(t5x):
  model, _, config, layout = _models(t5x, FIXED, num_decodes=2)
  batch = _batch(layout)
  params = _params(model, batch, scale=1.0)
  assert t5x.config_of(model.module.config) == config
  network_shapes.check_params(params, config)
  want = model._compute_logits(params, batch)
  got = EncoderDecoder(config).apply(
    {"params": params},
    batch["encoder_input_tokens"],
    batch["decoder_input_tokens"],
    deterministic=True,
  )
  np.testing.assert_allclose(got, want, atol=1e-5)
  # And the other way round: parameters made here, read by T5X's network.
  inputs = (batch["encoder_input_tokens"], batch["decoder_input_tokens"])
  ours = EncoderDecoder(config).init(
    jax.random.key(3), *inputs, deterministic=True
  )["params"]
  np.testing.assert_allclose(
    EncoderDecoder(config).apply({"params": ours}, *inputs, deterministic=True),
    model._compute_logits(ours, batch),
    atol=1e-5,
  )


@pytest.mark.parametrize("codes", [FIXED, VARIABLE], ids=["fixed", "variable"])
@pytest.mark.parametrize("num_decodes", [2, 8])
def test_both_decoders_agree_with_scoring_every_item(t5x, codes, num_decodes):
  ours, stock, _, layout = _models(t5x, codes, num_decodes=num_decodes)
  batch = _batch(layout)
  params = _params(ours, batch)
  decodes, aux = ours.predict_batch_with_aux(params, batch)
  assert decodes.shape == (
    3,
    num_decodes,
    batch["decoder_input_tokens"].shape[1],
  )
  other, other_aux = stock.predict_batch_with_aux(
    params, batch, rng=jax.random.PRNGKey(0)
  )
  np.testing.assert_array_equal(decodes, other)
  np.testing.assert_allclose(
    aux["scores"], other_aux["scores"], atol=1e-4, rtol=1e-5
  )
  # Exhaustive: T5X's own score of every ID, for every user.
  tokens = _tokens(codes, layout)
  scores = np.zeros((3, len(tokens)), np.float32)
  for column, row in enumerate(tokens):
    targets = jnp.broadcast_to(jnp.asarray(row), (3, len(row)))
    scores[:, column] = ours.score_batch(
      params,
      {
        **batch,
        "decoder_input_tokens": shift_right(targets),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets != 0).astype(jnp.float32),
      },
    )
  known = {tuple(row): column for column, row in enumerate(tokens.tolist())}
  found = np.isfinite(aux["scores"])
  assert found.sum(1).tolist() == [min(num_decodes, len(tokens))] * 3
  for user, beam in np.argwhere(found):
    column = known[tuple(decodes[user, beam].tolist())]
    np.testing.assert_allclose(
      aux["scores"][user, beam], scores[user, column], atol=1e-4, rtol=1e-5
    )
    item = int(aux["item_index"][user, beam])
    assert tuple(_tokens(codes[item : item + 1], layout)[0]) == tuple(
      tokens[column]
    )
  if num_decodes >= len(tokens):
    np.testing.assert_allclose(
      np.sort(scores, axis=1),
      aux["scores"][:, -len(tokens) :],
      atol=1e-4,
      rtol=1e-5,
    )


def test_one_decode_is_the_best_of_many(t5x):
  ours, _, _, layout = _models(t5x, FIXED, num_decodes=6)
  batch = _batch(layout)
  params = _params(ours, batch)
  decodes, aux = ours.predict_batch_with_aux(params, batch)
  best, best_aux = ours.predict_batch_with_aux(
    params, batch, return_all_decodes=False
  )
  np.testing.assert_array_equal(best, decodes[:, -1])
  np.testing.assert_array_equal(best_aux["scores"], aux["scores"].max(1))
  assert np.all(np.diff(aux["scores"], axis=1) <= 0) == np.False_


def test_bad_requests_are_refused(t5x):
  ours, _, _, layout = _models(t5x, FIXED, num_decodes=2)
  batch = _batch(layout)
  params = _params(ours, batch)
  with pytest.raises(checks.InputError, match=r"prompt_with_targets=False"):
    ours.predict_batch_with_aux(params, batch, prompt_with_targets=True)
  short = batch["decoder_input_tokens"][:, :2]
  with pytest.raises(checks.InputError, match=r"take 3 tokens.*targets 2"):
    ours.predict_batch_with_aux(
      params, {**batch, "decoder_input_tokens": short}
    )
  with pytest.raises(checks.InputError, match=r"got 16 and 128"):
    t5x.network_config(T5Config(vocab_size=8, relpos_buckets=16))


def _main(name, *flags, more=()):
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  environment.pop("XLA_FLAGS", None)
  done = subprocess.run(
    [sys.executable, "-m", f"t5x.{name}"]
    + [f"--gin_file=configs/gin/{file}.gin" for file in (name, *more)]
    + [f"--gin.{flag}" for flag in flags],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return done


@pytest.mark.slow
def test_t5x_trains_evaluates_and_infers_with_our_gin_files(t5x, tmp_path):
  from gr_jax.stages import generator, prepare, seqio_tasks

  config = stages.RunConfig.from_dict(quickstart.get_config("smoke").to_dict())
  workdir = stages.Workdir(tmp_path / "run")
  stages.embed(config, workdir)
  stages.tokenize(config, workdir)
  run = f'WORKDIR="{workdir.root}"'
  model_dir = tmp_path / "model"
  _main(
    "train", run, f'MODEL_DIR="{model_dir}"', "TRAIN_STEPS=4",
    "BATCH_SIZE=8", "EVAL_PERIOD=2", "NUM_EVAL_EXAMPLES=16",
  )  # fmt: skip
  task = seqio_tasks.register(config, workdir)
  made = task.generator
  step, params = t5x_checkpoints.load_params(model_dir, made.model.config)
  assert step == 4
  checkpoint = f'CHECKPOINT_PATH="{model_dir / "checkpoint_4"}"'
  _main("eval", run, checkpoint, f'EVAL_OUTPUT_DIR="{tmp_path / "eval"}"')
  lines = (
    tmp_path / "eval" / "inference_eval" / "next_item-metrics.jsonl"
  ).read_text()
  figures = json.loads(lines.splitlines()[-1])
  assert figures["invalid_rate"] == 0
  assert 0 <= figures["recall@5"] <= figures["recall@10"] <= 1

  # Written by us and read by T5X's infer: the lists that we would return.
  path = t5x_checkpoints.save_params(tmp_path / "ours", params, step=7)
  _main(
    "infer", run, f'CHECKPOINT_PATH="{path}"',
    f'INFER_OUTPUT_DIR="{tmp_path / "infer"}"', "BEAM_WIDTH=12",
  )  # fmt: skip
  written = next((tmp_path / "infer").glob("next_item-*-of-00001"))
  rows = [json.loads(line) for line in written.read_text().splitlines()]
  from gr_jax.data import splits
  from gr_jax.evaluation import evaluator
  from gr_jax.tasks import windows

  stored = prepare.load_data(workdir)
  predictions = evaluator.predict(
    evaluator.make_recommend_fn(
      made.model, made.vocabulary, made.trie, beam_width=12
    ),
    params,
    windows.training_data(
      stored.interactions,
      made.catalog,
      made.vocabulary,
      splits.leave_one_out(stored.interactions).test,
    ),
    made.layout,
    batch_size=64,
    mesh=generator.make_mesh(config),
  )
  items = np.array([row["aux"]["item_index"][::-1] for row in rows])
  scores = np.array([row["aux"]["scores"][::-1] for row in rows])
  np.testing.assert_allclose(scores, predictions.scores, atol=1e-4)
  # Beams of nearly equal scores may change places.
  assert np.mean(items == predictions.item_index) > 0.99


@pytest.mark.slow
def test_t5x_trains_one_network_on_two_catalogs(t5x, tmp_path):
  workdirs = []
  for index, sizes in enumerate([(8, 8, 8), (6, 5)]):
    config = quickstart.get_config("smoke")
    config.tokenizer.codebook_sizes = sizes
    config = stages.RunConfig.from_dict(config.to_dict())
    workdirs.append(stages.Workdir(tmp_path / f"run{index}"))
    stages.embed(config, workdirs[index])
    stages.tokenize(config, workdirs[index])
  paths = [str(workdir.root) for workdir in workdirs]
  runs = (f"WORKDIRS={paths!r}", "RATES=[1.0, 2.0]")
  _main(
    "train", f'WORKDIR="{paths[0]}"', *runs, f'MODEL_DIR="{tmp_path}/model"',
    "TRAIN_STEPS=4", "BATCH_SIZE=8", "EVAL_PERIOD=2",
    more=["mixture_train"],
  )  # fmt: skip
  for index, path in enumerate(paths):
    _main(
      "eval", f'WORKDIR="{path}"', *runs,
      f'CHECKPOINT_PATH="{tmp_path}/model/checkpoint_4"',
      f'EVAL_OUTPUT_DIR="{tmp_path}/eval{index}"', more=["mixture"],
    )  # fmt: skip
    folder = tmp_path / f"eval{index}" / "inference_eval"
    lines = (folder / f"next_items_{index}-metrics.jsonl").read_text()
    # All beams are IDs of the one catalog that was asked for.
    assert json.loads(lines.splitlines()[-1])["invalid_rate"] == 0
