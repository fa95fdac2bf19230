"""A checkpoint that T5X trained -> the run's generator."""

import jax
from absl import logging

from gr_jax.core import artifact
from gr_jax.integrations import t5x_checkpoints
from gr_jax.stages import generator, prepare, semantic_ids
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir


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
  stored = prepare.load_data(workdir)
  sids, catalog = semantic_ids.load_sids(workdir)
  network = generator.make_generator(config, catalog).model.config
  step, params = t5x_checkpoints.load_params(checkpoint, network)
  section = {name: config.sections[name] for name in ("task", "model")}
  saved = workdir.save(
    "generator",
    section | {"trainer": "t5x", "step": step},
    generator.params_to_arrays([params]),
    {"dataset": stored.artifact, "sids": sids},
    metadata={
      "last_step": step,
      "num_parameters": sum(p.size for p in jax.tree.leaves(params)),
    },
  )
  logging.info("generator: T5X's parameters of step %d.", step)
  return saved
