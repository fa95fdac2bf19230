"""One small world for all tests of seqio tasks; TensorFlow starts once."""

import types

import numpy as np
import pytest

from gr_jax.data import splits
from gr_jax.data.interactions import Interactions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary


def make_world(seed, *, variable, buckets, num_items=40, num_users=9):
  rng = np.random.default_rng(seed)
  sizes = (5, 4, 6, num_items)
  codes = rng.integers(0, sizes, (num_items, 4), dtype=np.int32)
  codes[:, 3] = np.arange(num_items)
  if variable:
    codes[::3, 1] = -1
    codes[::4, 2] = -1
  catalog = SidCatalog.from_levels(
    [f"i{n}" for n in range(num_items)], codes, sizes, num_semantic_levels=3
  )
  lengths = rng.integers(3, 9, num_users)
  items = np.concatenate([rng.permutation(num_items)[:n] for n in lengths])
  interactions = Interactions(
    user_ids=tuple(f"u{n}" for n in range(num_users)),
    items=items.astype(np.int32),
    offsets=np.concatenate([[0], np.cumsum(lengths)]),
  )
  return types.SimpleNamespace(
    catalog=catalog,
    interactions=interactions,
    split=splits.leave_one_out(interactions),
    layout=SidVocabulary.from_catalog(catalog, num_user_buckets=buckets),
  )


@pytest.fixture
def world_of():
  """The function that makes a world."""
  return make_world


@pytest.fixture
def registry():
  """Empties seqio's registries and cache folders around a test."""
  seqio = pytest.importorskip("seqio")
  seqio.TaskRegistry.reset()
  seqio.MixtureRegistry.reset()
  seqio.set_global_cache_dirs([])
  yield seqio
  seqio.TaskRegistry.reset()
  seqio.MixtureRegistry.reset()
  seqio.set_global_cache_dirs([])
