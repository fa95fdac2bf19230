"""Generators of other trainers become the run's, and the run's theirs."""

import json

import jax
import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.core import checks
from gr_jax.integrations import huggingface, t5x_checkpoints
from gr_jax.stages import exchange, generator, semantic_ids
from gr_jax.training import loop


@pytest.fixture(scope="module")
def config():
  config = quickstart.get_config("smoke")
  config.data.update(num_items=120, num_users=40)
  return stages.RunConfig.from_dict(config.to_dict())


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
  workdir = stages.Workdir(tmp_path_factory.mktemp("exchange") / "run")
  stages.embed(config, workdir)
  stages.tokenize(config, workdir)
  return workdir


def _made(config, workdir, key):
  _, catalog = semantic_ids.load_sids(workdir)
  made = generator.make_generator(config, catalog)
  params = loop.init_params(made.model, made.layout, keys=key[None])
  return made, jax.tree.map(lambda p: p[0], params)


def test_a_t5x_checkpoint_is_evaluated_as_one_trained_here(
  config, workdir, tmp_path, key
):
  with pytest.raises(checks.InputError, match=r"No T5X checkpoint in"):
    exchange.import_t5x(config, workdir, str(tmp_path / "none"))
  _, params = _made(config, workdir, key)
  t5x_checkpoints.save_params(tmp_path / "model", params, step=5)
  saved = exchange.import_t5x(config, workdir, str(tmp_path / "model"))
  assert saved.metadata["last_step"] == 5
  jax.tree.map(
    np.testing.assert_array_equal, generator.load_params(saved), params
  )
  stages.evaluate(config, workdir)
  assert (workdir.root / "report.md").is_file()


def test_a_generator_goes_to_hugging_face_and_back(
  config, workdir, tmp_path, key
):
  made, params = _made(config, workdir, key)
  theirs = tmp_path / "theirs"
  huggingface.save_params(theirs, params, made.model.config)
  saved = exchange.import_huggingface(config, workdir, str(theirs))
  jax.tree.map(
    np.testing.assert_array_equal, generator.load_params(saved), params
  )
  path = exchange.export_huggingface(config, workdir, str(tmp_path / "ours"))
  assert huggingface.read_config(path).vocab_size == (
    made.model.config.vocab_size
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    huggingface.load_params(path, made.model.config),
    params,
  )
  lines = (path / "items.jsonl").read_text().splitlines()
  items = [json.loads(line) for line in lines]
  assert [item["item_id"] for item in items] == list(made.catalog.item_ids)
  for item, codes in zip(items, made.catalog.codes, strict=True):
    tokens = np.array(item["tokens"], np.int32)
    np.testing.assert_array_equal(
      made.vocabulary.codes_from_tokens(tokens), codes
    )
    assert made.vocabulary.parse(item["sid"]) == item["tokens"]
  with pytest.raises(checks.InputError, match=r"ours' exists; name another"):
    exchange.export_huggingface(config, workdir, str(path))
  other = json.loads((path / "config.json").read_text())
  (path / "config.json").write_text(json.dumps(other | {"d_ff": 8}))
  with pytest.raises(checks.InputError, match=r"has mlp_dim=8 \(d_ff\)"):
    exchange.import_huggingface(config, workdir, str(path))


def test_other_networks_are_refused(workdir, tmp_path):
  other = quickstart.get_config("smoke")
  other.model.name = "decoder_only"
  other = stages.RunConfig.from_dict(other.to_dict())
  for exchanged in (
    exchange.import_t5x,
    exchange.import_huggingface,
    exchange.export_huggingface,
  ):
    with pytest.raises(checks.InputError, match=r"'decoder_only' is no T5"):
      exchanged(other, workdir, str(tmp_path / "x"))
