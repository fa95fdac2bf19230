"""`data.loader` and `model.name`: ways to train by the same stage."""

import json

import jax
import numpy as np
import pytest

from configs import quickstart, sasrec
from gr_jax import stages
from gr_jax.core import checks
from gr_jax.core import mesh as mesh_lib
from gr_jax.stages import generator, prepare, semantic_ids
from gr_jax.training import loaders


def _config(**sections):
  config = quickstart.get_config("smoke")
  config.data.update(num_items=120, num_users=60)
  config.training.update(num_steps=6, steps_per_dispatch=2, eval_every_steps=6)
  config.training.batch_size = 8
  config.optimizer.warmup_steps = 1
  for name, values in sections.items():
    if name in ("tokenizer", "collisions"):
      config[name] = values
    else:
      config[name].update(values)
  return stages.RunConfig.from_dict(config.to_dict())


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
  workdir = stages.Workdir(tmp_path_factory.mktemp("run"))
  stages.embed(_config(), workdir)
  stages.tokenize(_config(), workdir)
  return workdir


def _train(config, workdir, stop_requested=lambda: False):
  stored = prepare.load_data(workdir)
  sids, catalog = semantic_ids.load_sids(workdir)
  return generator.train(config, workdir, stored, sids, catalog, stop_requested)


@pytest.mark.slow
def test_seqio_trains_resumes_and_leaves_the_data_set_as_it_was(
  ready, tmp_path
):
  pytest.importorskip("seqio")
  config = _config(data=dict(loader="seqio"))
  before = prepare.load_data(ready).artifact.hash
  stages.embed(config, ready)
  assert prepare.load_data(ready).artifact.hash == before
  calls = iter(range(9))
  assert _train(config, ready, lambda: next(calls) == 1) is None
  resumed = _train(config, ready)
  # Alone, from the same checkpoints' start: delete them and train through.
  for folder in (ready.path("generator"), ready.training):
    folder.rename(tmp_path / folder.name)
  whole = _train(config, ready)
  assert resumed.arrays.keys() == whole.arrays.keys()
  for name, array in whole.arrays.items():
    np.testing.assert_array_equal(array, resumed.arrays[name])


@pytest.mark.slow
def test_sasrec_trains_and_is_evaluated_by_the_same_path(tmp_path):
  made = sasrec.get_config("beauty")
  config = _config(
    tokenizer=made.tokenizer.to_dict(),
    collisions=made.collisions.to_dict(),
    model=dict(name="sasrec", mlp_activations=("relu",)),
  )
  workdir = stages.Workdir(tmp_path / "run")
  stages.pipeline(config, workdir)
  sids = semantic_ids.load_sids(workdir)[1]
  assert sids.codes[:, -1].tolist() == list(range(sids.num_items))
  rows = json.loads((workdir.root / "report.json").read_text())
  own = rows["generator"]["nothing_removed"]["all"]
  assert own["invalid_rate"] == 0
  assert 0 < own["recall@20"] < 1
  with pytest.raises(checks.InputError, match="task.num_user_buckets=0"):
    generator.make_generator(
      _config(model=dict(name="sasrec"), task=dict(num_user_buckets=8)), sids
    )


def test_refusals(ready, monkeypatch):
  with pytest.raises(checks.InputError, match="Unknown data.loader 'grains'"):
    _config(data=dict(loader="grains"))
  with pytest.raises(checks.InputError, match="Unknown model.name 'sasrek'"):
    _config(model=dict(name="sasrek"))
  with pytest.raises(checks.InputError, match="use mesh.replica=1, not 2"):
    _config(mesh=dict(rules="replicas", replica=2))
  config = _config(data=dict(loader="grain"), mesh=dict(rules="replicas"))
  with pytest.raises(checks.InputError, match=r"use data.loader='device'"):
    _train(config, ready)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with pytest.raises(checks.InputError, match="a multiple of the 2 processes"):
    loaders.host_shard(mesh, 8)
