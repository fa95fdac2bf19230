r"""Examples a second of each way to make training batches.

  python -m benchmarks.input_pipeline --loaders=device,numpy,grain,seqio,cached

Data are made up: histories of random items with fixed-length IDs, in the
shape of TIGER's setting. An accelerator that trains faster than a loader's
figure waits for its host.
"""

import functools
import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from gr_jax.core import mesh as mesh_lib
from gr_jax.core import rng
from gr_jax.data import splits
from gr_jax.data.interactions import Interactions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import packing, windows
from gr_jax.training import loaders, stream

_LOADERS = flags.DEFINE_list(
  "loaders", ["device", "numpy", "grain", "seqio", "cached"], "Which to time."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Examples a batch.")
_MAX_HISTORY = flags.DEFINE_integer("max_history", 20, "Items an example.")
_NUM_USERS = flags.DEFINE_integer("num_users", 20_000, "Users.")
_NUM_ITEMS = flags.DEFINE_integer("num_items", 12_000, "Items.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "How long to measure each.")
_THREADS = flags.DEFINE_integer("threads", 2, "Of grain.")
_LEVELS = 4


def _make_world():
  draw = np.random.default_rng(0)
  num_items, num_users = _NUM_ITEMS.value, _NUM_USERS.value
  sizes = (256, 256, 256, num_items)
  codes = draw.integers(0, sizes, (num_items, _LEVELS), dtype=np.int32)
  codes[:, -1] = np.arange(num_items)
  catalog = SidCatalog(
    tuple(map(str, range(num_items))), codes, sizes, num_semantic_levels=3
  )
  lengths = 5 + draw.geometric(0.25, num_users)
  interactions = Interactions(
    user_ids=tuple(map(str, range(num_users))),
    items=draw.integers(0, num_items, lengths.sum(), dtype=np.int32),
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
  )
  vocabulary = SidVocabulary.from_catalog(catalog)
  layout = windows.WindowLayout.create(
    catalog, vocabulary, max_history=_MAX_HISTORY.value
  )
  split = splits.leave_one_out(interactions)
  examples = windows.training_examples(
    interactions, split, "prefixes", _MAX_HISTORY.value
  )
  return interactions, catalog, vocabulary, layout, split, examples


def _rate(make_batches, examples_a_call: int) -> float:
  """Calls until the time is up, after one call that compiles or opens."""
  make_batches()
  calls, start = 0, time.perf_counter()
  while time.perf_counter() - start < _SECONDS.value:
    make_batches()
    calls += 1
  return calls * examples_a_call / (time.perf_counter() - start)


def _device(world, key) -> float:
  interactions, catalog, vocabulary, layout, _, examples = world
  data = windows.training_data(interactions, catalog, vocabulary, examples)
  size, steps = _BATCH_SIZE.value, 50
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  loader = loaders.DeviceLoader(data, layout, mesh, batch_size=size)

  @jax.jit
  def many(first, data):
    def one(total, index):
      batch = loader.sampler.cut(data, index, key)
      # Something that needs every token, so that none is left unmade.
      return total + batch.inputs.sum() + batch.targets.sum(), None

    numbers = first + jnp.arange(steps, dtype=jnp.int32)
    index = loader.sampler.indices(numbers, key[None])[:, 0]
    return jax.lax.scan(one, jnp.int32(0), index)[0]

  first = jnp.int32(0)
  return _rate(
    lambda: many(first, loader.data).block_until_ready(), size * steps
  )


def _numpy(world, key) -> float:
  interactions, catalog, vocabulary, layout, _, examples = world
  data = stream.host_data(interactions, catalog, vocabulary, examples)
  size = _BATCH_SIZE.value
  data, strata, plan = _packed(data, layout)
  order = stream.ExampleOrder(key, batch_size=size, strata=strata)
  numbers = iter(range(order.num_steps))

  def batch():
    index = order.indices(next(numbers))
    return packing.pack(stream.gather_numpy(data, index, layout), plan)

  return _rate(batch, size)


def _packed(data, layout):
  lengths = packing.example_lengths(data, layout)
  size = _BATCH_SIZE.value
  strata = packing.Strata.create(lengths.size, size)
  plan = packing.make_plan(
    np.sort(lengths), layout, strata=strata, batch_size=size
  )
  return packing.sort_examples(data, lengths), strata, plan


def _grain(world, key) -> float:
  interactions, catalog, vocabulary, layout, _, examples = world
  data = stream.host_data(interactions, catalog, vocabulary, examples)
  data, strata, plan = _packed(data, layout)
  batches = stream.GrainStream(
    data,
    layout,
    key=key,
    shard=stream.HostShard(_BATCH_SIZE.value),
    strata=strata,
    plan=plan,
    num_threads=_THREADS.value,
  )
  return _rate(lambda: next(batches), _BATCH_SIZE.value)


def _seqio(world, key, *, cached: bool) -> float:
  del key
  from gr_jax.tasks import cache, next_item
  from gr_jax.tasks.seqio_vocabulary import SidSeqioVocabulary

  interactions, catalog, vocabulary, layout, split, _ = world
  name = "cached" if cached else "in_memory"
  next_item.register_splits(
    name,
    interactions=interactions,
    split=split,
    catalog=catalog,
    vocabulary=SidSeqioVocabulary(vocabulary),
    max_history=layout.max_history,
    augmentation="prefixes",
  )
  with tempfile.TemporaryDirectory() as folder:
    if cached:
      cache.cache_task(name, folder, splits=["train"], num_shards=4)
    batches = stream.SeqioStream(
      name,
      layout,
      seed=0,
      shard=stream.HostShard(_BATCH_SIZE.value),
      cache_dir=folder if cached else None,
    )
    return _rate(lambda: next(batches), _BATCH_SIZE.value)


_RATES = {
  "device": _device,
  "numpy": _numpy,
  "grain": _grain,
  "seqio": functools.partial(_seqio, cached=False),
  "cached": functools.partial(_seqio, cached=True),
}


def main(argv: list[str]) -> None:
  """Prints one line a loader."""
  del argv
  world = _make_world()
  key = rng.stream(jax.random.key(0), "order")
  layout = world[3]
  print(
    f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores; "
    f"{world[-1].num_examples:,} examples of {layout.input_length} + "
    f"{layout.target_length} tokens, batch {_BATCH_SIZE.value}"
  )
  for name in _LOADERS.value:
    if name not in _RATES:
      raise app.UsageError(f"Unknown loader {name!r}; known: {list(_RATES)}.")
    print(f"{name:8} {_RATES[name](world, key):12,.0f} examples/s", flush=True)


if __name__ == "__main__":
  app.run(main)
