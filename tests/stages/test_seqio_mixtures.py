"""Several runs as one seqio mixture."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages
from gr_jax.core import checks
from gr_jax.data import splits
from gr_jax.stages import prepare, semantic_ids, seqio_mixtures
from gr_jax.tasks import windows

seqio = pytest.importorskip("seqio")


def _config(**changes):
  config = quickstart.get_config("smoke")
  config.update_from_flattened_dict(
    {"data.num_items": 120, "data.num_users": 40, **changes}
  )
  return stages.RunConfig.from_dict(config.to_dict())


def _run(folder, config):
  workdir = stages.Workdir(folder)
  stages.embed(config, workdir)
  stages.tokenize(config, workdir)
  return workdir


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  small = {"tokenizer.codebook_sizes": (6, 5), "task.max_history": 5}
  return [
    _run(folder / "a", _config()),
    _run(folder / "b", _config(**{"data.num_items": 80, **small})),
  ]


@pytest.fixture(autouse=True)
def registries():
  yield
  seqio.TaskRegistry.reset()
  seqio.MixtureRegistry.reset()
  seqio_mixtures._registered.cache_clear()


def _rows(dataset):
  return [
    tuple(tuple(row[name].tolist()) for name in ("inputs", "targets"))
    for row in dataset.as_numpy_iterator()
  ]


def test_each_run_keeps_its_examples_under_tokens_of_its_own(workdirs):
  made = seqio_mixtures.register(workdirs, [3.0, 1.0])
  assert made.tasks == ("next_items_0", "next_items_1")
  want, known = [], []
  for index, workdir in enumerate(workdirs):
    config = workdir.read_config()
    stored = prepare.load_data(workdir)
    _, catalog = semantic_ids.load_sids(workdir)
    layout = made.vocabulary.layouts[index]
    split = splits.leave_one_out(stored.interactions)
    data = windows.training_data(
      stored.interactions,
      catalog,
      layout,
      windows.training_examples(
        stored.interactions,
        split,
        config.task.augmentation,
        config.task.max_history,
      ),
    )
    batch = windows.gather_batch(
      data,
      jnp.arange(data.num_examples, dtype=jnp.int32),
      windows.WindowLayout.create(
        catalog, layout, max_history=config.task.max_history
      ),
    )
    want.append(
      [
        tuple(tuple(row[row != 0].tolist()) for row in pair)
        for pair in zip(
          np.asarray(batch.inputs), np.asarray(batch.targets), strict=True
        )
      ]
    )
    task = seqio.TaskRegistry.get(made.tasks[index])
    found = task.get_dataset(
      sequence_length=made.feature_lengths, split="train", shuffle=False
    )
    assert _rows(found) == want[index]
    known.append({t for row in want[index] for part in row for t in part})
  # Only EOS is common, and the network has room for the last token.
  assert known[0] & known[1] == {1}
  assert made.network.vocab_size >= max(known[1]) + 1
  assert made.feature_lengths == {"inputs": 8 * 4 + 1, "targets": 4}
  # Drawn at the rates: 250 of 1,000 expected, deviation 14.
  mixed = seqio.get_mixture_or_task(made.name).get_dataset(
    sequence_length=made.feature_lengths,
    split="train",
    num_epochs=None,
    seed=0,
  )
  rows = _rows(mixed.take(1000))
  assert set(rows) <= {*want[0], *want[1]}
  second = sum(row[1][0] in known[1] for row in rows)
  assert abs(second - 250) < 70
  # seqio alone would trim a mixture's examples, too.
  with pytest.raises(checks.InputError, match=r"'inputs' is 32, but"):
    seqio.get_mixture_or_task(made.name).get_dataset(
      sequence_length={"inputs": 32, "targets": 4}, split="train"
    )


def test_gin_functions_read_the_runs_once(workdirs):
  paths = [str(workdir.root) for workdir in workdirs]
  rates = [1.0, 2.0]
  assert seqio_mixtures.name(paths, rates) == "next_items"
  assert seqio_mixtures.vocabulary(paths, rates) is seqio_mixtures.vocabulary(
    tuple(paths), rates
  )
  assert seqio_mixtures.network(paths, rates).emb_dim == 16
  assert seqio_mixtures.feature_lengths(paths, rates)["targets"] == 4
  assert seqio_mixtures.task_name(paths, rates, paths[1]) == "next_items_1"
  assert seqio_mixtures.layout_index(paths, paths[0] + "/") == 0
  with pytest.raises(checks.InputError, match=r"run of the mixture '/other'"):
    seqio_mixtures.layout_index(paths, "/other")
  # Runs change: a mixture of the same name is replaced.
  again = seqio_mixtures.register(workdirs[:1], [1.0])
  assert again.tasks == ("next_items_0",)


def test_runs_that_do_not_go_together_are_refused(workdirs, tmp_path):
  register = seqio_mixtures.register
  with pytest.raises(checks.InputError, match=r"got 2 runs and 1 rates"):
    register(workdirs, [1.0])
  with pytest.raises(checks.InputError, match=r"names a run twice"):
    register([workdirs[0]] * 2, [1.0, 1.0])
  with pytest.raises(checks.InputError, match=r"rate of task 'next_items_1' m"):
    register(workdirs, [1.0, 0.0])
  other = stages.Workdir(tmp_path / "other")
  for change, what in (
    ({"model.mlp_dim": 8}, "model"),
    ({"task.num_user_buckets": 4}, "task.num_user_buckets"),
  ):
    other.write_config(_config(**change))
    with pytest.raises(checks.InputError, match=rf"differ in '{what}'"):
      register([workdirs[0], other], [1.0, 1.0])
