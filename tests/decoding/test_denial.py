"""Denied items: the search equals one over a catalog without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.decoding import beam_search, denial, trie
from tests.decoding.table_model import (
  Layout,
  TableModel,
  brute_beam_search,
  random_codes,
  sort_key,
)

BATCH = 3
SIZES = (4, 5, 3)


def _search(model, tree, width, **kwargs):
  arrays = {k: v for k, v in kwargs.items() if not isinstance(v, bool)}
  flags = {k: v for k, v in kwargs.items() if isinstance(v, bool)}

  @jax.jit
  def run(cache, tree, arrays):
    return beam_search.beam_search(
      model,
      cache,
      tree,
      model.layout,
      batch_size=BATCH,
      beam_width=width,
      **arrays,
      **flags,
    )

  return jax.tree.map(np.asarray, run(model.cache(), tree, arrays))


def _world(seed, sizes, num_items, variable, distinct):
  rng = np.random.default_rng(seed)
  codes = random_codes(rng, num_items, sizes, variable, distinct)
  model = TableModel(Layout(sizes, append_eos=variable), BATCH, seed)
  return rng, codes, model


def _check(result, model, codes, allowed, width):
  for b in range(BATCH):
    left = np.flatnonzero(allowed[b])
    want = brute_beam_search(model, b, codes[left], (width,) * codes.shape[1])
    ids = [sort_key(p, codes.shape[1]) for _, p, _ in want]
    count = len(ids)
    assert [tuple(row) for row in result.codes[b, :count].tolist()] == ids
    np.testing.assert_allclose(
      result.scores[b, :count], [s for s, _, _ in want], rtol=0, atol=1e-5
    )
    first = [int(left[(codes[left] == i).all(1)][0]) for i in ids]
    assert result.item_index[b, :count].tolist() == first
    assert not result.valid[b, count:].any()
    assert (result.item_index[b, count:] == -1).all()


@pytest.mark.parametrize(
  ("dense", "variable", "distinct", "width"),
  [
    (True, False, True, 4),
    (True, True, False, 40),
    (False, False, False, 4),
    (False, True, True, 40),
  ],
)
def test_equals_a_catalog_without_the_denied_items(
  dense, variable, distinct, width
):
  rng, codes, model = _world(1, SIZES, 30, variable, distinct)
  denied = np.full((BATCH, 40 if dense else 20), -1, np.int32)
  allowed = np.ones((BATCH, 30), bool)
  for b, count in enumerate((0, 6, 19)):
    items = rng.choice(30, count, replace=False)
    denied[b, :count] = items
    allowed[b, items] = False
  denied[1, 6] = denied[1, 0]  # a repeat counts once
  tree = trie.build_trie(codes, SIZES, narrow_children=0 if dense else 64)
  by_list = _search(model, tree, width, denied_items=jnp.asarray(denied))
  _check(by_list, model, codes, allowed, width)
  by_mask = _search(model, tree, width, item_mask=jnp.asarray(allowed))
  _check(by_mask, model, codes, allowed, width)


def test_denying_nothing_changes_nothing_and_all_leaves_nothing():
  _, codes, model = _world(2, (3, 4), 9, False, True)
  tree = trie.build_trie(codes, (3, 4))
  plain = _search(model, tree, 5)
  nothing = jnp.full((BATCH, 9), -1, jnp.int32)
  nothing = _search(model, tree, 5, denied_items=nothing)
  for name in (field.name for field in dataclasses.fields(plain)):
    np.testing.assert_array_equal(getattr(plain, name), getattr(nothing, name))
  none = jnp.zeros((BATCH, 0), jnp.int32)
  none = _search(model, tree, 5, denied_items=none)
  np.testing.assert_array_equal(plain.item_index, none.item_index)
  every = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32)[None], (BATCH, 9))
  result = _search(model, tree, 5, denied_items=every)
  assert not result.valid.any()
  assert (result.item_index == -1).all()


def test_deny_list_by_hand():
  # Sorted IDs: (0, 1) of item 2, (1, 0) of item 0, (1, 2) of item 1.
  codes = np.array([[1, 0], [1, 2], [0, 1]], np.int32)
  tree = jax.tree.map(jnp.asarray, trie.build_trie(codes, (2, 3)))
  denied = denial.deny_list(tree, jnp.array([[1, -1, 2, 1]], jnp.int32))
  assert denied.place.tolist() == [[0, 2, 3, 3]]
  dead, denied = denial.dead_children(tree, 0, denied)
  # Code 0 holds item 2 alone and dies; code 1 keeps item 0.
  assert dead.child.tolist() == [[0, -1, -1, -1]]
  dead, _ = denial.dead_children(tree, 1, denied)
  assert dead.child.tolist() == [[0, 2, -1, -1]]
  assert dead.code[0, :2].tolist() == [1, 2]


@pytest.mark.parametrize("as_mask", [True, False])
def test_a_free_search_leaves_out_denied_ids_alone(as_mask):
  _, codes, model = _world(3, (3, 4), 7, False, True)
  tree = trie.build_trie(codes, (3, 4))
  plain = _search(model, tree, 12, constrained=False)
  if as_mask:
    mask = jnp.broadcast_to(~np.isin(np.arange(7), [2, 5])[None], (BATCH, 7))
    denied = {"item_mask": mask}
  else:
    rows = jnp.broadcast_to(jnp.array([[2, 5, -1]], jnp.int32), (BATCH, 3))
    denied = {"denied_items": rows}
  got = _search(model, tree, 12, constrained=False, **denied)
  for b in range(BATCH):
    stays = ~np.isin(plain.item_index[b], [2, 5])
    np.testing.assert_array_equal(got.codes[b, :10], plain.codes[b][stays])
    np.testing.assert_array_equal(
      got.item_index[b, :10], plain.item_index[b][stays]
    )
    assert (got.scores[b, 10:] == -np.inf).all()


def test_first_alive_skips_a_run():
  # Positions 2, 3, 4 and 7 are denied, 9 fills.
  place = jnp.array([[2, 3, 4, 7, 9, 9]], jnp.int32)
  start = jnp.array([[0, 2, 3, 5, 7]], jnp.int32)
  by_list = denial.first_alive(denial.DenyList(place, place), start)
  assert by_list.tolist() == [[0, 5, 5, 5, 8]]
  mask = jnp.array([[1, 1, 0, 0, 0, 1, 1, 0, 1]], bool)
  below = jnp.pad(jnp.cumsum(mask, axis=1), ((0, 0), (1, 0)))
  by_mask = denial.first_alive(denial.AllowCounts(below), start)
  assert by_mask.tolist() == by_list.tolist()


def test_refusals():
  _, codes, model = _world(2, (3, 4), 9, False, True)
  tree = trie.build_trie(codes, (3, 4))
  denied = jnp.zeros((BATCH, 1), jnp.int32)
  mask = jnp.ones((BATCH, 8), bool)
  with pytest.raises(InputError, match="denied_items needs .*1 rows, batch"):
    _search(model, tree, 5, denied_items=denied[:1])
  with pytest.raises(InputError, match="item_mask has 8 columns; the .* 9"):
    _search(model, tree, 5, item_mask=mask)
  with pytest.raises(InputError, match="not both"):
    _search(model, tree, 5, item_mask=mask, denied_items=denied)
