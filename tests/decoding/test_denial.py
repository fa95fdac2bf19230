"""Denied items: the search equals one over a catalog without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.decoding import beam_search, denial, trie
from tests.decoding.table_model import Layout, TableModel, random_codes

BATCH = 3


def _search(model, tree, width, denied=None, **kwargs):
  @jax.jit
  def run(cache, tree, denied):
    return beam_search.beam_search(
      model,
      cache,
      tree,
      model.layout,
      batch_size=BATCH,
      beam_width=width,
      denied_items=denied,
      **kwargs,
    )

  return jax.tree.map(np.asarray, run(model.cache(), tree, denied))


def _world(seed, sizes, num_items, variable, distinct):
  rng = np.random.default_rng(seed)
  codes = random_codes(rng, num_items, sizes, variable, distinct)
  model = TableModel(Layout(sizes, append_eos=variable), BATCH, seed)
  return rng, codes, model


@pytest.mark.parametrize(
  ("dense", "variable", "distinct", "width"),
  [
    (True, False, True, 4),
    (False, True, True, 4),
    (True, True, False, 40),
    (False, False, False, 4),
  ],
)
def test_equals_a_catalog_without_the_denied_items(
  dense, variable, distinct, width
):
  sizes = (4, 5, 3)
  rng, codes, model = _world(1, sizes, 30, variable, distinct)
  narrow = 0 if dense else 64
  denied = np.full((BATCH, 20), -1, np.int32)
  for row, count in zip(denied, (0, 6, 19), strict=True):
    row[:count] = rng.choice(len(codes), count, replace=False)
  denied[1, 6] = denied[1, 0]  # a repeat counts once
  tree = trie.build_trie(codes, sizes, narrow_children=narrow)
  got = _search(model, tree, width, jnp.asarray(denied))
  for b in range(BATCH):
    left = np.setdiff1d(np.arange(len(codes)), denied[b])
    small = trie.build_trie(codes[left], sizes, narrow_children=narrow)
    want = _search(model, small, width)
    count = int(want.valid[b].sum())
    np.testing.assert_array_equal(got.codes[b], want.codes[b])
    np.testing.assert_allclose(got.scores[b], want.scores[b], atol=1e-6)
    np.testing.assert_array_equal(got.valid[b], want.valid[b])
    np.testing.assert_array_equal(
      got.item_index[b, :count], left[want.item_index[b, :count]]
    )
    assert (got.item_index[b, count:] == -1).all()


def test_denying_nothing_changes_nothing_and_all_leaves_nothing():
  _, codes, model = _world(2, (3, 4), 9, False, True)
  tree = trie.build_trie(codes, (3, 4))
  plain = _search(model, tree, 5)
  nothing = _search(model, tree, 5, jnp.full((BATCH, 2), -1, jnp.int32))
  for name in (field.name for field in dataclasses.fields(plain)):
    np.testing.assert_array_equal(getattr(plain, name), getattr(nothing, name))
  none = _search(model, tree, 5, jnp.zeros((BATCH, 0), jnp.int32))
  np.testing.assert_array_equal(plain.item_index, none.item_index)
  every = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32)[None], (BATCH, 9))
  result = _search(model, tree, 5, every)
  assert not result.valid.any()
  assert (result.item_index == -1).all()


def test_positions_by_hand():
  # Sorted IDs: (0, 1) of item 2, (1, 0) of item 0, (1, 2) of item 1.
  codes = np.array([[1, 0], [1, 2], [0, 1]], np.int32)
  tree = jax.tree.map(jnp.asarray, trie.build_trie(codes, (2, 3)))
  denied = jnp.array([[1, -1, 2, 1]], jnp.int32)
  place = denial.positions(tree, denied)
  assert place.tolist() == [[0, 2, 3, 3]]
  root = jnp.zeros_like(place)
  dead, child = denial.dead_children(tree.levels[0], root, place, 3)
  # Code 0 holds item 2 alone and dies; code 1 keeps item 0.
  assert dead.child.tolist() == [[0, -1, -1, -1]]
  dead, _ = denial.dead_children(tree.levels[1], child, place, 3)
  assert dead.child.tolist() == [[0, 2, -1, -1]]
  assert dead.code[0, :2].tolist() == [1, 2]


def test_a_free_search_leaves_out_denied_ids_alone():
  _, codes, model = _world(3, (3, 4), 7, False, True)
  tree = trie.build_trie(codes, (3, 4))
  plain = _search(model, tree, 12, constrained=False)
  denied = jnp.broadcast_to(jnp.array([[2, 5, -1]], jnp.int32), (BATCH, 3))
  got = _search(model, tree, 12, denied, constrained=False)
  for b in range(BATCH):
    stays = ~np.isin(plain.item_index[b], [2, 5])
    np.testing.assert_array_equal(got.codes[b, :10], plain.codes[b][stays])
    np.testing.assert_array_equal(
      got.item_index[b, :10], plain.item_index[b][stays]
    )
    assert (got.scores[b, 10:] == -np.inf).all()


def test_refusals():
  _, codes, model = _world(2, (3, 4), 9, False, True)
  tree = trie.build_trie(codes, (3, 4))
  denied = jnp.zeros((BATCH, 1), jnp.int32)
  with pytest.raises(InputError, match=r"1 rows, batch_size=3"):
    _search(model, tree, 5, denied[:1])
