"""A checkpoint in T5X's format becomes the run's generator."""

import jax
import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.core import checks
from gr_jax.integrations import t5x_checkpoints
from gr_jax.stages import generator, import_t5x, semantic_ids
from gr_jax.training import loop


def test_an_imported_checkpoint_is_evaluated_as_one_trained_here(tmp_path, key):
  config = quickstart.get_config("smoke")
  config.data.update(num_items=120, num_users=40)
  config = stages.RunConfig.from_dict(config.to_dict())
  workdir = stages.Workdir(tmp_path / "run")
  stages.embed(config, workdir)
  stages.tokenize(config, workdir)
  with pytest.raises(checks.InputError, match=r"No T5X checkpoint in"):
    import_t5x.import_t5x(config, workdir, str(tmp_path / "none"))
  _, catalog = semantic_ids.load_sids(workdir)
  made = generator.make_generator(config, catalog)
  params = loop.init_params(made.model, made.layout, keys=key[None])
  params = jax.tree.map(lambda p: p[0], params)
  t5x_checkpoints.save_params(tmp_path / "model", params, step=5)
  saved = import_t5x.import_t5x(config, workdir, str(tmp_path / "model"))
  assert saved.metadata["last_step"] == 5
  jax.tree.map(
    np.testing.assert_array_equal, generator.load_params(saved), params
  )
  stages.evaluate(config, workdir)
  assert (workdir.root / "report.md").is_file()
