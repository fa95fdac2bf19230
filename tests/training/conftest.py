"""A small world: 12 items, 40 users, a tiny network."""

import dataclasses

import jax
import numpy as np
import pytest

from gr_jax.core import mesh as mesh_lib
from gr_jax.data import interactions as interactions_lib
from gr_jax.data import splits
from gr_jax.models.config import T5Config
from gr_jax.models.encoder_decoder import EncoderDecoder
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import windows


@dataclasses.dataclass(frozen=True)
class World:
  model: EncoderDecoder
  layout: windows.WindowLayout
  data: windows.TrainingData
  interactions: interactions_lib.Interactions
  split: splits.Split
  catalog: SidCatalog
  vocabulary: SidVocabulary


@pytest.fixture(scope="session")
def world():
  """Users walk a cycle of items, so the next item is always certain."""
  num_items, num_users, length = 12, 40, 6
  catalog = SidCatalog(
    item_ids=tuple(str(i) for i in range(num_items)),
    codes=np.array([divmod(i, 4) for i in range(num_items)], np.int32),
    codebook_sizes=(3, 4),
    num_semantic_levels=2,
  )
  steps = np.arange(num_users)[:, None] + np.arange(length)[None]
  interactions = interactions_lib.Interactions(
    user_ids=tuple(str(u) for u in range(num_users)),
    items=(steps % num_items).astype(np.int32).ravel(),
    offsets=np.arange(num_users + 1, dtype=np.int64) * length,
    times=None,
  )
  split = splits.leave_one_out(interactions)
  vocabulary = SidVocabulary.from_catalog(catalog)
  examples = windows.training_examples(interactions, split, "prefixes", 4)
  return World(
    model=EncoderDecoder(
      T5Config(
        vocab_size=vocabulary.vocab_size,
        emb_dim=16,
        num_heads=2,
        head_dim=8,
        mlp_dim=32,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.1,
      )
    ),
    layout=windows.WindowLayout.create(catalog, vocabulary, max_history=4),
    data=windows.training_data(interactions, catalog, vocabulary, examples),
    interactions=interactions,
    split=split,
    catalog=catalog,
    vocabulary=vocabulary,
  )


@pytest.fixture(scope="session")
def one_device():
  return mesh_lib.make_mesh(jax.devices()[:1])
