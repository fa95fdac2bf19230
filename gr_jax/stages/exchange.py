"""Generators of other trainers <-> the run's generator."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import logging

from gr_jax.core import artifact, checks
from gr_jax.integrations import huggingface, t5x_checkpoints
from gr_jax.stages import generator, live_catalog, prepare, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir

_ITEMS = "items.jsonl"


def import_t5x(
  config: RunConfig, workdir: Workdir, checkpoint: str
) -> artifact.Artifact:
  """Stores a T5X checkpoint as the generator that later stages read.

  Evaluation, recommendation and export then treat it as one trained here.
  Needs no T5X.

  Args:
    config: The run's settings, those that T5X trained with.
    workdir: The run that T5X's task was registered from.
    checkpoint: A folder `checkpoint_<step>`, or one that holds some, of which
      the newest is taken.

  Raises:
    InputError: No semantic IDs yet, no checkpoint there, or one of another
      network.
  """
  _check_network(config)
  _, catalog = semantic_ids.load_sids(workdir)
  network = generator.make_generator(config, catalog).model.config
  step, params = t5x_checkpoints.load_params(checkpoint, network)
  return _save(config, workdir, params, trainer="t5x", step=step)


def import_huggingface(
  config: RunConfig, workdir: Workdir, checkpoint: str
) -> artifact.Artifact:
  """Stores a T5 that `transformers` trained as the run's generator.

  Args:
    config: The run's settings.
    workdir: The run whose tokens it was trained on: `export_huggingface`
      writes the network to start from and the tokens of every item.
    checkpoint: A folder that `save_pretrained` wrote.

  Raises:
    InputError: No semantic IDs yet, no model there, or one of another
      network.
  """
  _check_network(config)
  _, catalog = semantic_ids.load_sids(workdir)
  network = generator.make_generator(config, catalog).model.config
  params = huggingface.load_params(checkpoint, network)
  return _save(config, workdir, params, trainer="huggingface", step=0)


def export_huggingface(
  config: RunConfig, workdir: Workdir, folder: str
) -> pathlib.Path:
  """Writes the run's best generator for `T5ForConditionalGeneration`.

  Beside the model lies `items.jsonl`: every item's `item_id`, its `tokens` as
  the model reads and writes them, and its readable `sid`. A history is the
  tokens of its items, oldest first, then token 1; the decoder starts with 0.

  Args:
    config: The run's settings.
    workdir: Holds a trained generator.
    folder: Must not exist.

  Returns:
    The folder.

  Raises:
    InputError: No trained generator yet, the folder exists, or Hugging Face's
      T5 has no such network.
  """
  _check_network(config)
  live = live_catalog.load(workdir)
  stored = prepare.load_data(workdir)
  saved = workdir.load_child(
    "generator", {"dataset": stored.artifact, "sids": live.sids_artifact}
  )
  made = generator.make_generator(config, live.sids)
  params = generator.load_params(saved)
  path = huggingface.save_params(folder, params, made.model.config)
  rows = np.asarray(made.vocabulary.tokens_from_codes(live.sids.codes))
  with (path / _ITEMS).open("w") as file:
    for item_id, row in zip(live.sids.item_ids, rows, strict=True):
      tokens = row[row != made.vocabulary.pad_id]
      line = {
        "item_id": item_id,
        "tokens": tokens.tolist(),
        "sid": made.vocabulary.readable(tokens),
      }
      file.write(json.dumps(line) + "\n")
  logging.info("generator: written to %s.", path)
  return path


def _check_network(config: RunConfig) -> None:
  if config.network != "encoder_decoder":
    raise checks.InputError(
      f"model.name={config.network!r} is no T5; only 'encoder_decoder' goes to "
      "T5X and Hugging Face and comes from there."
    )


def _save(
  config: RunConfig, workdir: Workdir, params: Any, *, trainer: str, step: int
) -> artifact.Artifact:
  stored = prepare.load_data(workdir)
  sids, _ = semantic_ids.load_sids(workdir)
  section = {name: config.sections[name] for name in ("task", "model")}
  saved = workdir.save(
    "generator",
    section | {"trainer": trainer, "step": step},
    generator.params_to_arrays([params]),
    {"dataset": stored.artifact, "sids": sids},
    metadata={
      "last_step": step,
      "num_parameters": sum(p.size for p in jax.tree.leaves(params)),
    },
  )
  logging.info("generator: parameters that %s trained.", trainer)
  return saved
