"""Predictions: batches, devices, removed items."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.core import mesh as mesh_lib
from gr_jax.data import Interactions, splits
from gr_jax.decoding import trie as trie_lib
from gr_jax.evaluation import evaluator
from gr_jax.models.config import T5Config
from gr_jax.models.encoder_decoder import EncoderDecoder
from gr_jax.models.rq_transformer import RQTransformer
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import windows

NUM_ITEMS = 10


def _decoder(of_items, direct_path=False):
  """A network of tokens or of items over ten items, and what it needs."""
  sizes = (3, NUM_ITEMS if direct_path else 4)
  codes = [(i // 4, i if direct_path else i % 4) for i in range(NUM_ITEMS)]
  catalog = SidCatalog(
    tuple(map(str, range(NUM_ITEMS))),
    np.array(codes, np.int32),
    sizes,
    num_semantic_levels=2,
  )
  vocabulary = SidVocabulary.from_catalog(catalog)
  layout = windows.WindowLayout.create(catalog, vocabulary, max_history=3)
  config = T5Config(
    vocab_size=vocabulary.vocab_size, emb_dim=8, num_heads=2, head_dim=4,
    mlp_dim=8, num_encoder_layers=1, num_decoder_layers=1,
  )  # fmt: skip
  model = EncoderDecoder(config)
  if of_items:
    model = RQTransformer(
      config, vocabulary.code_ranges, NUM_ITEMS if direct_path else 0
    )
  inputs = jnp.ones((1, layout.input_length), jnp.int32)
  targets = jnp.ones((1, layout.target_length), jnp.int32)
  params = model.init(jax.random.key(0), inputs, targets)["params"]
  histories = [[i % NUM_ITEMS, (3 * i) % NUM_ITEMS] for i in range(11)]
  data = windows.history_data(
    histories, vocabulary.tokens_from_codes(catalog.codes)
  )
  trie = trie_lib.build_trie(catalog.codes, catalog.codebook_sizes)
  return model, vocabulary, trie, layout, params, data


@pytest.fixture(scope="module")
def decoder():
  return _decoder(of_items=False)


def _predict(
  decoder, *, batch_size, num_devices=1, width=NUM_ITEMS, denied_items=None
):
  model, vocabulary, trie, layout, params, data = decoder
  return evaluator.predict(
    evaluator.make_recommend_fn(model, vocabulary, trie, beam_width=width),
    params,
    data,
    layout,
    batch_size=batch_size,
    mesh=mesh_lib.make_mesh(jax.devices()[:num_devices]),
    denied_items=denied_items,
  )


@pytest.mark.parametrize(
  ("of_items", "direct_path"), [(False, False), (True, False), (True, True)]
)
def test_full_beam_ranks_the_catalog_as_teacher_forcing_scores_it(
  decoder, of_items, direct_path
):
  decoder = _decoder(of_items, direct_path) if of_items else decoder
  model, vocabulary, tree, layout, params, data = decoder
  predictions = _predict(decoder, batch_size=4)
  index = np.arange(11, dtype=np.int32)
  inputs = windows.gather_batch(data, jnp.asarray(index), layout).inputs
  scores = np.empty((11, NUM_ITEMS), np.float32)
  for item in range(NUM_ITEMS):
    targets = np.broadcast_to(data.item_tokens[item], (11, 2))
    scores[:, item] = model.apply(
      {"params": params}, inputs, jnp.asarray(targets), method="score"
    )
  order = np.argsort(-scores, axis=1, kind="stable")
  np.testing.assert_array_equal(predictions.item_index, order)
  np.testing.assert_allclose(
    predictions.scores, np.take_along_axis(scores, order, 1), atol=1e-5
  )
  exact = evaluator.make_exact_fn(model, vocabulary, tree)(params, inputs)
  np.testing.assert_allclose(exact, scores, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "num_devices"), [(3, 1), (16, 8)])
def test_batches_and_devices_change_nothing(decoder, batch_size, num_devices):
  want = _predict(decoder, batch_size=4)
  got = _predict(decoder, batch_size=batch_size, num_devices=num_devices)
  np.testing.assert_array_equal(want.item_index, got.item_index)
  np.testing.assert_allclose(want.scores, got.scores, atol=1e-5)


def test_one_program_serves_all_batches(decoder):
  model, vocabulary, trie, layout, params, data = decoder
  traces = []

  class Counting(EncoderDecoder):
    def encode(self, inputs):
      traces.append(inputs.shape)
      return super().encode(inputs)

  recommend = evaluator.make_recommend_fn(
    Counting(model.config), vocabulary, trie, beam_width=4
  )
  evaluator.predict(
    recommend, params, data, layout, batch_size=4,
    mesh=mesh_lib.make_mesh(jax.devices()[:1]),
  )  # fmt: skip
  assert traces == [(4, layout.input_length)]


def test_denied_items_leave_and_the_others_keep_their_order(decoder):
  plain = _predict(decoder, batch_size=4)
  draw = np.random.default_rng(0)
  denied = draw.integers(-1, NUM_ITEMS, (11, 4)).astype(np.int32)
  got = _predict(decoder, batch_size=4, denied_items=denied)
  for row, (had, items) in enumerate(
    zip(plain.item_index, denied, strict=True)
  ):
    left = had[~np.isin(had, items)]
    want = np.full(NUM_ITEMS, -1)
    want[: left.size] = left
    np.testing.assert_array_equal(got.item_index[row], want)
    assert got.returned[row].sum() == left.size


def test_histories_are_padded_rows():
  interactions = Interactions(
    user_ids=("a", "b"),
    items=np.array([5, 6, 7, 8, 9, 5, 6], np.int32),
    offsets=np.array([0, 4, 7], np.int64),
    times=None,
  )
  examples = splits.leave_one_out(interactions).test
  rows = evaluator.histories(interactions, examples)
  assert rows.tolist() == [[5, 6, 7], [9, 5, -1]]
  assert evaluator.targets(interactions, examples).tolist() == [8, 6]


def test_a_batch_that_devices_cannot_share_is_refused(decoder):
  with pytest.raises(checks.InputError, match=r"evaluation.batch_size=4 is"):
    _predict(decoder, batch_size=4, num_devices=8)
