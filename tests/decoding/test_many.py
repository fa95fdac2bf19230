"""Decoding in bulk: a million IDs, and worlds drawn over all axes (slow)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.decoding import beam_search, trie
from tests.decoding.table_model import Layout, TableModel, random_codes
from tests.decoding.test_beam_search import check_against_brute, search


@pytest.mark.slow
@pytest.mark.parametrize("variable", [False, True])
def test_none_of_a_million_decoded_ids_is_invalid(variable):
  sizes, batch, width = (64, 48, 80), 500, 100
  rng = np.random.default_rng(0)
  codes = random_codes(rng, 20_000, sizes, variable)
  tree = jax.device_put(trie.build_trie(codes, sizes))
  layout = Layout(sizes, append_eos=variable)

  @jax.jit
  def run(start, tree, denied):
    model = TableModel(layout, batch, seed=0)
    return beam_search.beam_search(
      model,
      {"hash": start},
      tree,
      layout,
      batch_size=batch,
      beam_width=width,
      denied_items=denied,
    )

  total = 0
  for _ in range(1_000_000 // (batch * width)):
    start = rng.integers(0, 4099, (batch, 1)).astype(np.int32)
    denied = rng.integers(0, len(codes), (batch, 12)).astype(np.int32)
    result = jax.device_get(run(start, tree, denied))
    assert result.valid.all()
    np.testing.assert_array_equal(result.codes, codes[result.item_index])
    in_order = np.sort(result.item_index, axis=1)
    assert np.all(in_order[:, 1:] > in_order[:, :-1])  # none comes twice
    assert not np.any(result.item_index[..., None] == denied[:, None])
    assert np.all(np.diff(result.scores, axis=1) <= 0)
    total += result.item_index.size
  assert total == 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_worlds_over_all_axes_equal_brute_force(seed):
  rng = np.random.default_rng(1000 + seed)
  num_levels = int(rng.integers(1, 9))
  largest = int(rng.choice([3, 8, 40, 300]))
  sizes = tuple(int(k) for k in rng.integers(2, largest + 1, num_levels))
  num_items = min(int(rng.integers(1, 300)), int(np.prod(sizes, dtype=float)))
  variable = bool(rng.integers(2)) and num_levels > 1
  codes = random_codes(rng, num_items, sizes, variable)
  batch, constrained = int(rng.integers(1, 5)), bool(rng.integers(4))
  widths = tuple(int(w) for w in rng.integers(1, 60, num_levels))
  if rng.integers(2):
    widths = (widths[0],) * num_levels
  layout = Layout(sizes, append_eos=variable or bool(rng.integers(2)))
  model = TableModel(layout, batch, seed, padding=int(rng.integers(3)))
  tree = trie.build_trie(
    codes, sizes, narrow_children=int(rng.choice([0, 4, 64]))
  )
  result = search(model, tree, widths, constrained=constrained)
  assert result.codes.shape == (batch, widths[-1], num_levels)
  check_against_brute(result, model, codes, widths, constrained)
  assert result.scores.dtype == jnp.float32
