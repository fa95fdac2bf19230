"""Targets drawn from text neighbors, and histories cut at random."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.core import mesh as mesh_lib
from gr_jax.data import splits
from gr_jax.data.interactions import Interactions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import neighbors, packing, windows
from gr_jax.training import loaders


def test_draws_are_as_frequent_as_the_softmax_of_cosines():
  # From item 0: cosines 1 (item 2), 0 (item 3), -1 (item 1); lengths differ.
  vectors = np.array([[1, 0], [-2, 0], [3, 0], [0, 4]], np.float32)
  table = neighbors.neighbor_table(
    vectors, temperature=1.0, num_neighbors=2, num_draws=100
  )
  near = 1 / (1 + np.exp(-1.0))  # .731, against 0: e^1 to e^0
  assert np.count_nonzero(table[0] == 2) == round(100 * near)
  assert set(table[0].tolist()) == {2, 3}
  # To item 3 all cosines are 0: two of them, the lowest indices, half each.
  np.testing.assert_array_equal(
    np.bincount(table[3], minlength=4), [50, 50, 0, 0]
  )


def test_cold_draws_are_the_nearest_alone_whatever_the_blocks(monkeypatch):
  vectors = np.random.default_rng(0).normal(size=(37, 5)).astype(np.float32)
  cosine = vectors @ vectors.T
  cosine /= np.sqrt(np.outer(np.diag(cosine), np.diag(cosine)))
  np.fill_diagonal(cosine, -np.inf)
  monkeypatch.setattr(neighbors, "_BLOCK_ELEMENTS", 10 * 37)
  table = neighbors.neighbor_table(vectors, temperature=1e-6, num_draws=3)
  np.testing.assert_array_equal(
    table, np.repeat(cosine.argmax(axis=1)[:, None], 3, axis=1)
  )


def test_one_item_has_no_neighbors():
  with pytest.raises(checks.InputError, match="set task.neighbor_share=0"):
    neighbors.neighbor_table(np.ones((1, 2), np.float32), temperature=0.05)


def test_a_neighbor_is_of_the_item_before_and_not_known_yet(key):
  # Item i's only neighbors are i + 10 and i + 20.
  table = jnp.stack([jnp.arange(30) + 10, jnp.arange(30) + 20], axis=1)
  table = (table % 30).astype(jnp.int32)
  history = jnp.array([[1, 11, 5], [2, 3, 4]], jnp.int32)
  newest = jnp.array([[0, 1, 2], [0, 1, -1]], jnp.int32)
  following = jnp.array([[7, 7, 7], [8, 8, 8]], jnp.int32)
  draw = jax.jit(neighbors.draw, static_argnames="share")
  found = np.stack(
    [
      draw(k, table, history, newest, following, share=1.0)
      for k in jax.random.split(key, 40)
    ]
  )
  want = [[{11, 21}, {21, 7}, {15, 25}], [{12, 22}, {13, 23}, {8}]]
  for row in range(2):
    for place in range(3):
      assert set(found[:, row, place].tolist()) == want[row][place]


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_share_of_neighbors_is_as_asked(key, share):
  table = jnp.full((2, 4), 1, jnp.int32)
  history = jnp.zeros((400, 5), jnp.int32)
  newest = jnp.zeros((400, 5), jnp.int32)
  following = jnp.zeros((400, 5), jnp.int32)
  found = neighbors.draw(key, table, history, newest, following, share=share)
  assert abs(float(found.mean()) - share) < 0.04


def _world():
  """Two users of 5 and 4 items; item i's only neighbor is i + 5 or i - 5."""
  codes = np.stack(np.divmod(np.arange(10, dtype=np.int32), 5), axis=1)
  catalog = SidCatalog(tuple("abcdefghij"), codes, (2, 5), 2)
  interactions = Interactions(
    user_ids=("u", "v"),
    items=np.array([0, 1, 2, 3, 4, 4, 3, 2, 1], np.int32),
    offsets=np.array([0, 5, 9]),
    times=None,
  )
  table = (jnp.arange(10, dtype=jnp.int32)[:, None] + 5) % 10
  return catalog, interactions, table


@pytest.mark.parametrize("augmentation", ["sequences", "prefixes"])
def test_windows_exchange_targets_and_nothing_else(augmentation, key):
  catalog, interactions, table = _world()
  vocabulary = SidVocabulary.from_catalog(catalog)
  layout = windows.WindowLayout.create(
    catalog, vocabulary, max_history=3, every_item=augmentation == "sequences"
  )
  examples = windows.training_examples(
    interactions, splits.leave_one_out(interactions), augmentation, 3
  )
  data = windows.training_data(interactions, catalog, vocabulary, examples)
  index = jnp.arange(examples.num_examples, dtype=jnp.int32)

  plain = windows.gather_batch(data, index, layout)

  def retarget(history, newest, following):
    return neighbors.draw(key, table, history, newest, following, share=1.0)

  found = windows.gather_batch(data, index, layout, retarget)
  np.testing.assert_array_equal(found.inputs, plain.inputs)
  np.testing.assert_array_equal(found.targets == 0, plain.targets == 0)
  # With H = 3 and every target the neighbor of the item before it, targets
  # are the history's last tokens, the first code exchanged.
  for row in range(examples.num_examples):
    inputs = np.asarray(plain.inputs[row])
    items = inputs[: np.flatnonzero(inputs == 1)[0]].reshape(-1, 2).copy()
    items[:, 0] = 5 - items[:, 0]  # tokens 2 and 3 of the first level
    wanted = items if augmentation == "sequences" else items[-1:]
    targets = np.asarray(found.targets[row])
    np.testing.assert_array_equal(targets[targets > 0], wanted.reshape(-1))


def test_cuts_part_what_was_one_and_join_nothing(key):
  segments = jnp.array([[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0]] * 50, jnp.int32)
  first, second = jax.random.split(key)
  whole = packing.cut_histories(first, segments, num_levels=2, rate=0.0)
  np.testing.assert_array_equal(
    whole[:, :, None] == whole[:, None],
    segments[:, :, None] == segments[:, None],
  )
  cut = packing.cut_histories(second, segments, num_levels=2, rate=0.4)
  joined = cut[:, :, None] == cut[:, None]
  assert not jnp.any(joined & (segments[:, :, None] != segments[:, None]))
  items = cut[:, :10].reshape(50, 5, 2)
  np.testing.assert_array_equal(items[:, :, 0], items[:, :, 1])
  inner = np.array([0, 1, 3])  # items that the next one belongs to
  is_cut = items[:, inner, 0] != items[:, inner + 1, 0]
  assert abs(is_cut.mean() - 0.4) < 0.12


def test_a_sampler_augments_by_its_key(key):
  catalog, interactions, table = _world()
  vocabulary = SidVocabulary.from_catalog(catalog)
  layout = windows.WindowLayout.create(
    catalog, vocabulary, max_history=3, every_item=True
  )
  examples = windows.training_examples(
    interactions, splits.leave_one_out(interactions), "sequences", 3
  )
  data = windows.training_data(interactions, catalog, vocabulary, examples)
  loader = loaders.DeviceLoader(
    data.replace(neighbors=table),
    layout,
    mesh_lib.make_mesh(jax.devices()[:1]),
    batch_size=2,
    neighbor_share=0.5,
    history_cut_rate=0.5,
  )
  cut = jax.jit(loader.sampler.cut)
  index = jnp.arange(2, dtype=jnp.int32)
  first, again, other = (
    cut(loader.data, index, jax.random.fold_in(key, n)) for n in (0, 0, 1)
  )
  jax.tree.map(np.testing.assert_array_equal, first, again)
  np.testing.assert_array_equal(first.inputs, other.inputs)
  assert not np.array_equal(first.targets, other.targets)
  assert not np.array_equal(first.input_segments, other.input_segments)
