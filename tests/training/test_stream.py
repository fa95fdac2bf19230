"""Host streams: the device sampler's examples, shared, ordered, resumable."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks, permutation, rng
from gr_jax.data import splits
from gr_jax.data.interactions import Interactions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import packing, windows
from gr_jax.training import step, stream

H = 4


class World:
  """A small data set and its examples."""

  def __init__(self, *, variable, buckets, num_items=40, num_users=12):
    draw = np.random.default_rng(0)
    sizes = (5, 4, num_items)
    codes = draw.integers(0, sizes, (num_items, 3), dtype=np.int32)
    codes[:, 2] = np.arange(num_items)
    if variable:
      codes[::3, 1] = -1
    self.catalog = SidCatalog.from_levels(
      [f"i{n}" for n in range(num_items)], codes, sizes, num_semantic_levels=2
    )
    lengths = draw.integers(3, 9, num_users)
    items = np.concatenate([draw.permutation(num_items)[:n] for n in lengths])
    self.interactions = Interactions(
      user_ids=tuple(f"u{n}" for n in range(num_users)),
      items=items.astype(np.int32),
      offsets=np.concatenate([[0], np.cumsum(lengths)]),
    )
    self.split = splits.leave_one_out(self.interactions)
    self.vocabulary = SidVocabulary.from_catalog(
      self.catalog, num_user_buckets=buckets
    )
    self.layout = windows.WindowLayout.create(
      self.catalog, self.vocabulary, max_history=H
    )
    self.examples = windows.training_examples(
      self.interactions, self.split, "subsequences", H
    )
    parts = (
      self.interactions, self.catalog, self.vocabulary, self.examples
    )  # fmt: skip
    self.host = stream.host_data(*parts)
    self.device = windows.training_data(*parts)


@pytest.fixture(scope="module")
def world():
  return World(variable=False, buckets=3)


def _equal(got, want):
  np.testing.assert_array_equal(got.inputs, want.inputs)
  np.testing.assert_array_equal(got.targets, want.targets)
  assert got.inputs.dtype == got.targets.dtype == np.int32


def _rows(batches):
  return [
    (tuple(i.tolist()), tuple(t.tolist()))
    for batch in batches
    for i, t in zip(batch.inputs, batch.targets, strict=True)
  ]


def _take(iterator, count):
  return [next(iterator) for _ in range(count)]


@pytest.mark.parametrize(
  ("variable", "buckets"), [(False, 0), (False, 3), (True, 0), (True, 3)]
)
def test_numpy_gathers_what_the_device_gathers(variable, buckets):
  world = World(variable=variable, buckets=buckets)
  index = np.arange(world.host.num_examples)
  got = stream.gather_numpy(world.host, index, world.layout)
  gather = jax.jit(windows.gather_batch, static_argnames="layout")
  want = gather(
    world.device, jnp.asarray(index, jnp.int32), layout=world.layout
  )
  _equal(got, want)


def test_numpy_gathers_sequences_as_the_device_does():
  world = World(variable=False, buckets=0)
  layout = dataclasses.replace(world.layout, every_item=True)
  index = np.arange(world.host.num_examples)
  got = stream.gather_numpy(world.host, index, layout)
  gather = jax.jit(windows.gather_batch, static_argnames="layout")
  want = gather(world.device, jnp.asarray(index, jnp.int32), layout=layout)
  _equal(got, want)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
def test_numpy_permutes_as_jax_does(key, size):
  keys = permutation.round_keys(key)
  index = np.arange(size, dtype=np.int32)
  want = permutation.permute(jnp.asarray(index), keys, size=size)
  np.testing.assert_array_equal(
    permutation.permute_numpy(index, np.asarray(keys), size), want
  )


@pytest.mark.parametrize("num_examples", [5, 33])
def test_the_order_is_the_samplers(key, num_examples):
  strata = packing.Strata(num_examples, 4)
  order = stream.ExampleOrder(key, batch_size=8, strata=strata)
  sample = jax.jit(
    lambda s: step.example_indices(s, key, batch_size=8, strata=strata)
  )
  for number in (0, 1, 3, 4, 1000):
    np.testing.assert_array_equal(
      order.indices(number), sample(jnp.int32(number))
    )


def _packed(world):
  """Strata, plan and sorted host data of batches of 8."""
  lengths = packing.example_lengths(world.host, world.layout)
  strata = packing.Strata(lengths.size, 4)
  plan = packing.make_plan(
    np.sort(lengths), world.layout, strata=strata, batch_size=8, row_multiple=2
  )
  return strata, plan, packing.sort_examples(world.host, lengths)


def _grain_stream(world, key, host=0, num_hosts=1, num_threads=2):
  strata, plan, data = _packed(world)
  return stream.GrainStream(
    data,
    world.layout,
    key=key,
    shard=stream.HostShard(8, host, num_hosts),
    strata=strata,
    plan=plan,
    num_threads=num_threads,
  )


def test_a_grain_stream_is_the_sampler_shared_by_hosts(world, key):
  pytest.importorskip("grain", reason="pip install grain==0.2.18")
  order_key = rng.stream(key, "order")
  whole = [
    _grain_stream(world, order_key, host, 2, num_threads=2) for host in (0, 1)
  ]
  strata, plan, _ = _packed(world)
  sampler = step.DeviceSampler(world.layout, strata, plan, 8)
  lengths = packing.example_lengths(world.device, world.layout)
  device = packing.sort_examples(world.device, lengths)

  @jax.jit
  def cut(data, key, step):
    index = sampler.indices(step[None], key[None])[0, 0]
    return sampler.cut(data, index, key)

  for number in range(12):
    want = cut(device, order_key, jnp.int32(number))
    parts = [next(part) for part in whole]
    _equal(jax.tree.map(lambda *x: np.concatenate(x), *parts), want)
  # Resumed on one host in place of two, and without threads.
  state = whole[0].state()
  assert state == {
    "batch_size": 8, "num_examples": world.host.num_examples, "step": 12
  }  # fmt: skip
  resumed = _grain_stream(world, order_key, num_threads=0)
  resumed.restore(state)
  parts = [next(part) for part in whole]
  _equal(next(resumed), jax.tree.map(lambda *x: np.concatenate(x), *parts))


@pytest.fixture
def seqio(world):
  """seqio with the world's task in its registry."""
  seqio = pytest.importorskip("seqio")
  from gr_jax.tasks import next_item
  from gr_jax.tasks.seqio_vocabulary import SidSeqioVocabulary

  seqio.TaskRegistry.reset()
  seqio.set_global_cache_dirs([])
  next_item.register_splits(
    "task",
    interactions=world.interactions,
    split=world.split,
    catalog=world.catalog,
    vocabulary=SidSeqioVocabulary(world.vocabulary),
    max_history=H,
  )
  yield seqio
  seqio.TaskRegistry.reset()
  seqio.MixtureRegistry.reset()
  seqio.set_global_cache_dirs([])


def _seqio_stream(world, *, host=0, num_hosts=1, name="task", **options):
  return stream.SeqioStream(
    name,
    world.layout,
    seed=7,
    shard=stream.HostShard(4, host, num_hosts),
    **options,
  )


def test_a_seqio_stream_goes_through_every_example(world, seqio):
  index = np.arange(world.host.num_examples)
  want = _rows([stream.gather_numpy(world.host, index, world.layout)])
  steps = len(want) // 4
  whole = _seqio_stream(world)
  epochs = [_rows(_take(whole, steps)) for _ in range(2)]
  assert epochs[0] != epochs[1]
  for epoch in epochs:
    assert len(set(epoch)) == len(epoch) == steps * 4
    assert set(epoch) <= set(want)
  halves = [_seqio_stream(world, host=host, num_hosts=2) for host in (0, 1)]
  rows = [_rows(_take(half, steps - 1)) for half in halves]
  assert not set(rows[0]) & set(rows[1])
  assert {*rows[0], *rows[1]} <= set(want)


@pytest.mark.parametrize("mixture", [False, True])
def test_a_seqio_stream_resumes(world, seqio, mixture):
  if mixture:
    from gr_jax.tasks import next_item

    next_item.register_mixture("mixture", {"task": 1.0})
  name = "mixture" if mixture else "task"
  steps = world.host.num_examples // 4
  first = _seqio_stream(world, name=name)
  _take(first, steps + 3)  # into the second epoch
  resumed = _seqio_stream(world, name=name)
  resumed.restore(first.state())
  assert resumed.state() == first.state()
  assert _rows(_take(resumed, 4)) == _rows(_take(first, 4))


def test_a_cached_task_streams_the_same_examples(world, seqio, tmp_path):
  from gr_jax.tasks import cache

  cache.cache_task("task", tmp_path, splits=["train"], num_shards=2)
  steps = (world.host.num_examples - 2) // 4
  found = _seqio_stream(world, cache_dir=str(tmp_path))
  rows = _rows(_take(found, steps))
  index = np.arange(world.host.num_examples)
  want = _rows([stream.gather_numpy(world.host, index, world.layout)])
  assert len(set(rows)) == steps * 4
  assert set(rows) <= set(want)


def test_bad_streams_are_refused(world, seqio, key, monkeypatch):
  with pytest.raises(checks.InputError, match=r"lie in 0\.\.1; got 2"):
    stream.HostShard(8, 2, 2)
  with pytest.raises(checks.InputError, match=r"multiple of num_hosts=3"):
    stream.HostShard(8, 0, 3)
  with pytest.raises(checks.InputError, match=r"num_examples=0"):
    stream.ExampleOrder(key, batch_size=8, strata=packing.Strata(0))
  with pytest.raises(checks.InputError, match=r"Unknown seqio task 'tusk'"):
    _seqio_stream(world, name="tusk")
  with pytest.raises(checks.InputError, match=r"too few for batch_size=9999"):
    stream.SeqioStream(
      "task", world.layout, seed=0, shard=stream.HostShard(9999)
    )
  found = _seqio_stream(world)
  with pytest.raises(checks.InputError, match=r"has batch_size=8.* stream 4"):
    found.restore({**found.state(), "batch_size": 8})
  monkeypatch.setitem(sys.modules, "grain", None)
  with pytest.raises(checks.InputError, match=r"pip install grain==0\.2\.18"):
    _grain_stream(world, key)
