"""Examples written by a run are those that it trains on."""

import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from gr_jax import stages, tasks
from gr_jax.core import checks
from gr_jax.data import splits
from gr_jax.stages import cache_tasks, prepare
from gr_jax.tasks import windows

pytest.importorskip("seqio")

import seqio

from gr_jax.stages import seqio_tasks


def _config(**changes):
  config = quickstart.get_config("smoke")
  config.data.update(num_items=120, num_users=40)
  config.task.update(changes)
  return stages.RunConfig.from_dict(config.to_dict())


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  workdir = stages.Workdir(tmp_path_factory.mktemp("run"))
  stages.embed(_config(), workdir)
  stages.tokenize(_config(), workdir)
  return workdir


@pytest.fixture(autouse=True)
def registries():
  yield
  seqio.TaskRegistry.reset()
  seqio.set_global_cache_dirs([])
  seqio_tasks._registered.cache_clear()


def test_the_task_follows_the_catalog(workdir, tmp_path):
  """As recommendations do: with appended items and without removed ones."""
  shutil.copytree(workdir.root, tmp_path / "run")
  run = stages.Workdir(tmp_path / "run")
  before = seqio_tasks.register(_config(), run)
  path = tmp_path / "new.jsonl"
  path.write_text('{"item_id": "new0", "title": "Mistral Sunscreen"}\n')
  stages.append(_config(), run, str(path))
  stages.remove(_config(), run, ("item00003",))
  after = seqio_tasks.register(_config(), run)
  gone = prepare.load_data(run).catalog.index_of("item00003")
  want = sorted(set(range(121)) - {gone})
  assert sorted(np.asarray(after.generator.trie.item_order).tolist()) == want
  assert after.vocabulary == before.vocabulary
  assert after.cache_dir == before.cache_dir


def _rows(task, split):
  data = task.get_dataset(
    sequence_length={"inputs": 33, "targets": 4},
    split=split,
    shuffle=False,
    use_cached=task.cache_dir is not None,
  )
  return sorted(
    (tuple(row["inputs"].tolist()), tuple(row["targets"].tolist()))
    for row in data.as_numpy_iterator()
  )


def test_the_cache_holds_the_windows_of_the_run(workdir):
  config = _config()
  stats = cache_tasks.cache_tasks(config, workdir, num_shards=3)
  stored = prepare.load_data(workdir)
  split = splits.leave_one_out(stored.interactions)
  registered = seqio_tasks.register(config, workdir)
  assert registered.is_cached
  assert registered.feature_lengths == {"inputs": 33, "targets": 4}
  task = seqio.TaskRegistry.get(registered.name)
  assert task.cache_dir == str(registered.cache_dir / "next_item")
  made = registered.generator
  for name, examples in {
    "train": windows.training_examples(
      stored.interactions, split, "prefixes", 8
    ),
    "test": split.test,
  }.items():
    data = windows.training_data(
      stored.interactions, made.catalog, made.vocabulary, examples
    )
    index = jnp.arange(data.num_examples, dtype=jnp.int32)
    gather = jax.jit(windows.gather_batch, static_argnames="layout")
    batch = gather(data, index, layout=made.layout)
    want = sorted(
      tuple(tuple(int(t) for t in row if t) for row in pair)
      for pair in zip(
        np.asarray(batch.inputs), np.asarray(batch.targets), strict=True
      )
    )
    assert _rows(task, name) == want
    assert stats[name]["examples"] == len(want)
  # A second run keeps what matches; other settings get a folder of their own.
  assert cache_tasks.cache_tasks(config, workdir) == stats
  shorter = seqio_tasks.register(_config(max_history=4), workdir)
  assert not shorter.is_cached
  assert shorter.cache_dir != registered.cache_dir


def test_gin_functions_read_the_run_once(workdir):
  root = str(workdir.root)
  assert seqio_tasks.task_name(root) == "next_item"
  assert seqio_tasks.vocabulary(root) is seqio_tasks.vocabulary(root)
  assert seqio_tasks.feature_lengths(root) == {"inputs": 33, "targets": 4}
  network = seqio_tasks.network(root)
  assert network.vocab_size >= seqio_tasks.vocabulary(root).vocab_size
  assert seqio_tasks.trie(root).num_items == 120


def test_bad_requests_are_refused(workdir, tmp_path, monkeypatch):
  config = _config(max_history=2)
  with pytest.raises(checks.InputError, match=r"num_shards must .* got 0"):
    cache_tasks.cache_tasks(config, workdir, num_shards=0)
  with pytest.raises(checks.InputError, match=r"Unknown split .*'dev'"):
    cache_tasks.cache_tasks(config, workdir, splits=["dev"])
  cache_tasks.cache_tasks(config, workdir, splits=["test"])
  with pytest.raises(checks.InputError, match=r"without split 'train'"):
    cache_tasks.cache_tasks(config, workdir, splits=["train"])
  with pytest.raises(checks.InputError, match=r"neighbor_share=0.3 to 0 and"):
    seqio_tasks.register(_config(neighbor_share=0.3), workdir)
  with pytest.raises(checks.InputError, match=r"No run in"):
    seqio_tasks.open_run(tmp_path)
  monkeypatch.setitem(sys.modules, "gr_jax.tasks.next_item", None)
  monkeypatch.delattr(tasks, "next_item")
  with pytest.raises(checks.InputError, match=r"pip install seqio==0.0.20"):
    seqio_tasks.register(config, workdir)
