"""The loop: selection, early stop, resume, refusals."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks, metric_writer
from gr_jax.tasks import windows
from gr_jax.training import loaders, loop
from gr_jax.training.checkpoint import Checkpointer
from gr_jax.training.optimizer import OptimizerConfig
from gr_jax.training.state import TrainState

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)


def _loader(world, mesh, config, keys, name):
  if name == "device":
    return loaders.DeviceLoader(
      world.data, world.layout, mesh, batch_size=config.batch_size
    )
  examples = windows.training_examples(
    world.interactions, world.split, "prefixes", world.layout.max_history
  )
  return loaders.grain_loader(
    world.interactions,
    world.catalog,
    world.vocabulary,
    examples,
    world.layout,
    mesh,
    keys=keys,
    batch_size=config.batch_size,
    num_steps=config.steps_per_dispatch,
  )


def _train(
  world,
  mesh,
  folder,
  *,
  stop_after=None,
  values=None,
  seed=1,
  loader="device",
  **config,
):
  """Runs the loop with a validation that reads the parameters' norm."""
  config = {
    "batch_size": 8,
    "num_steps": 12,
    "steps_per_dispatch": 2,
    "eval_every_steps": 4,
    "patience": 0,
    "selection_metric": "score",
  } | config
  replicas = config.get("replicas", 1)
  values = iter(values) if values is not None else None
  dispatches = iter(range(1, 100))

  def validate(params):
    norm = float(sum(abs(p).sum() for p in jax.tree.leaves(params)))
    return {"score": norm if values is None else next(values)}

  checkpointer = Checkpointer(folder / "checkpoints", fingerprint="run")
  try:
    keys = jnp.stack([jax.random.key(seed + r) for r in range(replicas)])
    config = loop.TrainingConfig(**config)
    return loop.train(
      world.model,
      _loader(world, mesh, config, keys, loader),
      world.layout,
      config=config,
      optimizer_config=OPTIMIZER,
      mesh=mesh,
      keys=keys,
      validate=validate,
      checkpointer=checkpointer,
      writer_folder=str(folder / "metrics"),
      stop_requested=lambda: next(dispatches) == stop_after,
    )
  finally:
    checkpointer.close()


def _rows(folder):
  return [
    {k: v for k, v in row.items() if "per_second" not in k}
    for row in metric_writer.read(folder / "metrics")
  ]


@pytest.mark.parametrize(
  "stop_after",
  [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 5))],
)
def test_a_stopped_run_resumes_to_the_same_bits(
  world, one_device, tmp_path, stop_after
):
  whole = _train(world, one_device, tmp_path / "whole")
  parts = tmp_path / "parts"
  assert _train(world, one_device, parts, stop_after=stop_after) is None
  resumed = _train(world, one_device, parts)
  assert (resumed.best_step, resumed.best_value, resumed.last_step) == (
    whole.best_step,
    whole.best_value,
    whole.last_step,
  )
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
  assert _rows(parts) == _rows(tmp_path / "whole")


def test_a_host_loader_trains_the_same_and_resumes_to_the_same_bits(
  world, one_device, tmp_path
):
  pytest.importorskip("grain", reason="pip install grain==0.2.18")
  config = {"loader": "grain", "replicas": 2}
  whole = _train(world, one_device, tmp_path / "whole", **config)
  parts = tmp_path / "parts"
  assert _train(world, one_device, parts, stop_after=3, **config) is None
  resumed = _train(world, one_device, parts, **config)
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)
  assert _rows(parts) == _rows(tmp_path / "whole")
  device = _train(world, one_device, tmp_path / "device", replicas=2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
    device.params,
    whole.params,
  )


def test_the_best_parameters_are_kept_and_patience_ends_the_run(
  world, one_device, tmp_path
):
  result = _train(
    world,
    one_device,
    tmp_path,
    values=[0.1, 0.5, 0.4, 0.4, 0.9],
    num_steps=40,
    patience=2,
  )
  assert (result.best_step, result.last_step) == ((8,), 16)
  np.testing.assert_allclose(result.best_value, [0.5])
  again = _train(
    world, one_device, tmp_path, values=[], num_steps=40, patience=2
  )
  assert again.last_step == 16  # a finished run stays finished
  jax.tree.map(np.testing.assert_array_equal, result.params, again.params)


@pytest.mark.slow
def test_replicas_keep_their_own_best_as_alone(world, one_device, tmp_path):
  """Seeds 1 and 2 together, stopped and resumed, and each by itself."""
  config = {"num_steps": 20, "patience": 1}
  # The second runs out of patience at step 12; its 0.9 counts no more.
  scores = [(0.1, 0.2), (0.3, 0.5), (0.4, 0.1), (0.2, 0.9)]
  flat = [value for pair in scores for value in pair]
  both = tmp_path / "both"
  stopped = _train(
    world, one_device, both, replicas=2, values=flat[:4], stop_after=5, **config
  )
  assert stopped is None
  together = _train(
    world, one_device, both, replicas=2, values=flat[4:], **config
  )
  assert together.best_step == (12, 8)
  assert together.best_value == (0.4, 0.5)
  assert together.last_step == 16
  for r in range(2):
    alone = _train(
      world, one_device, tmp_path / str(r), seed=1 + r,
      values=[pair[r] for pair in scores], **config,
    )  # fmt: skip
    assert alone.best_step == together.best_step[r : r + 1]
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4),
      together.params[r],
      alone.params[0],
    )
  rows = metric_writer.read(both / "metrics")
  assert {"train/loss/replica_1", "validation/score/replica_0"} < set(rows[-1])


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
  world, one_device, tmp_path
):
  whole = _train(world, one_device, tmp_path / "whole")
  parts = tmp_path / "parts"
  assert _train(world, one_device, parts, stop_after=4) is None
  newest = parts / "checkpoints" / "latest" / "8"
  assert newest.is_dir()
  for file in newest.rglob("*"):
    if file.is_file() and "state" in file.parts:
      file.write_bytes(b"")
  resumed = _train(world, one_device, parts)
  jax.tree.map(np.testing.assert_array_equal, whole.params, resumed.params)


def test_divergence_is_reported_and_nothing_is_saved_after_it(
  world, one_device, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    loop.step_lib,
    "make_train_steps",
    lambda *a, **k: (
      lambda state, data, keys: (
        state.replace(step=state.step + 2),
        loop.step_lib.StepMetrics(
          loss=np.float32([np.nan]), accuracy=None, gradient_norm=None
        ),
      )
    ),
  )
  with pytest.raises(loop.DivergedError, match="loss is nan before step 2"):
    _train(world, one_device, tmp_path)
  latest = tmp_path / "checkpoints" / "latest"
  assert not [p for p in latest.iterdir() if p.name.isdigit()]


def test_checkpoints_of_another_run_are_refused(world, one_device, tmp_path):
  _train(world, one_device, tmp_path, stop_after=2)
  before = sorted(tmp_path.rglob("*"))
  other = Checkpointer(tmp_path / "checkpoints", fingerprint="other")
  with pytest.raises(checks.InputError, match="another configuration"):
    other.restore(TrainState(step=0, params={}, opt_state={}))
  assert sorted(tmp_path.rglob("*")) == before


def test_unreadable_checkpoints_are_named(world, one_device, tmp_path):
  _train(world, one_device, tmp_path, stop_after=2)
  for folder in (tmp_path / "checkpoints" / "latest").glob("[0-9]*"):
    shutil.rmtree(folder / "facts")
    (folder / "facts").mkdir()
  with pytest.raises(checks.InputError, match=r"can be read; delete"):
    _train(world, one_device, tmp_path)


def test_periods_must_fit_into_each_other():
  with pytest.raises(checks.InputError, match="num_steps=250 must be a"):
    loop.TrainingConfig(num_steps=250)
  with pytest.raises(checks.InputError, match="eval_every_steps=50 must"):
    loop.TrainingConfig(num_steps=200, eval_every_steps=50)


def test_replicas_need_settings_each():
  with pytest.raises(checks.InputError, match="replicas must be 1 or more"):
    loop.TrainingConfig(replicas=0)
  with pytest.raises(checks.InputError, match="holds 2 values for 3 replicas"):
    loop.TrainingConfig(replicas=3, learning_rates=(1e-3, 1e-3))
  with pytest.raises(checks.InputError, match="learning_rates must exceed 0"):
    loop.TrainingConfig(learning_rates=(0.0,))
  with pytest.raises(checks.InputError, match=r"dropout_rates must lie in \[0"):
    loop.TrainingConfig(dropout_rates=(1.0,))


def test_nothing_validated_yet(tmp_path):
  with pytest.raises(checks.InputError, match="No best parameters"):
    Checkpointer(tmp_path, fingerprint="x").restore_best(0, {})
