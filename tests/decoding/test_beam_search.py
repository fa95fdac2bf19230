import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.decoding import beam_search, exact, extension, trie, trie_update
from tests.decoding.table_model import (
  Layout,
  TableModel,
  brute_beam_search,
  item_log_likelihood,
  random_codes,
  sort_key,
)


def search(model, tree, beam_width, **kwargs):
  """Jitted search, the trie an argument."""
  batch_size = model.start.shape[0]

  @jax.jit
  def run(cache, tree):
    return beam_search.beam_search(
      model,
      cache,
      tree,
      model.layout,
      batch_size=batch_size,
      beam_width=beam_width,
      **kwargs,
    )

  return jax.tree.map(np.asarray, run(model.cache(), tree))


def exact_scores(model, tree, **kwargs):
  batch_size = model.start.shape[0]

  @jax.jit
  def run(cache, tree):
    return exact.exact_scores(
      model,
      cache,
      tree,
      model.layout,
      batch_size=batch_size,
      chunk_size=7,
      **kwargs,
    )

  return run(model.cache(), tree)


def check_against_brute(result, model, codes, widths, constrained=True):
  rows = {tuple(row): i for i, row in reversed(list(enumerate(codes.tolist())))}
  num_levels = codes.shape[1]
  for b in range(result.scores.shape[0]):
    want = brute_beam_search(model, b, codes, widths, constrained)
    count = len(want)
    got = [tuple(row) for row in result.codes[b].tolist()]
    assert got[:count] == [sort_key(p, num_levels) for _, p, _ in want]
    np.testing.assert_allclose(
      result.scores[b, :count], [s for s, _, _ in want], rtol=0, atol=1e-5
    )
    items = [rows.get(row, -1) for row in got[:count]]
    assert result.item_index[b, :count].tolist() == items
    assert result.valid[b, :count].tolist() == [i >= 0 for i in items]
    assert not result.valid[b, count:].any()
    assert (result.item_index[b, count:] == -1).all()
    assert (result.scores[b, count:] == -np.inf).all()


def test_two_levels_by_hand():
  # IDs 00, 01, 10; logits chosen so that probabilities are read off easily.
  codes = np.array([[1, 0], [0, 1], [0, 0]], np.int32)
  layout = Layout((2, 2), num_others=0)

  def logits(tokens, cache, level):
    if level == 0:
      p = [[0.0, 0.0, 0.6, 0.4, 0.0, 0.0]]  # pad eos | 0 1 | 0 1
    else:
      # After 0: mass 0.5 lies outside the catalog's tokens and is lost.
      after_0 = [0.5, 0.0, 0.0, 0.0, 0.2, 0.3]
      after_1 = [0.0, 0.0, 0.0, 0.0, 0.9, 0.1]
      p = [after_0, after_1]
    return jnp.log(jnp.array([p])), cache

  result = beam_search.beam_search(
    logits,
    {},
    trie.build_trie(codes, (2, 2)),
    layout,
    batch_size=1,
    beam_width=4,
  )
  assert result.codes[0].tolist() == [[1, 0], [0, 1], [0, 0], [-1, -1]]
  assert result.item_index[0].tolist() == [0, 1, 2, -1]
  assert result.valid[0].tolist() == [True, True, True, False]
  np.testing.assert_allclose(
    np.exp(result.scores[0]), [0.36, 0.18, 0.12, 0.0], rtol=1e-6
  )


def test_a_levels_own_codes_by_hand():
  codes = np.array([[1, 0], [0, 1], [0, 0]], np.int32)
  levels = [[[0.6, 0.4]], [[0.2, 0.8], [0.9, 0.1]]]  # after 0, after 1
  result = beam_search.beam_search(
    lambda tokens, cache, level: (jnp.log(jnp.array([levels[level]])), cache),
    {},
    trie.build_trie(codes, (2, 2)),
    Layout((2, 2)),
    batch_size=1,
    beam_width=3,
  )
  assert result.codes[0].tolist() == [[0, 1], [1, 0], [0, 0]]
  np.testing.assert_allclose(
    np.exp(result.scores[0]), [0.48, 0.36, 0.12], rtol=1e-6
  )


class OwnCodes(TableModel):
  """Logits of a level's codes, or of all tokens with the others impossible."""

  def __init__(self, layout, full, batch_size=1):
    super().__init__(layout, batch_size, seed=0)
    self.full = full

  def __call__(self, tokens, cache, level):
    logits, cache = super().__call__(tokens, cache, level)
    first = self.layout.level_offsets[level]
    own = slice(first, first + self.layout.codebook_sizes[level])
    if self.full:
      rest = jnp.full_like(logits, -jnp.inf)
      return rest.at[..., own].set(logits[..., own]), cache
    return logits[..., own], cache


@pytest.mark.parametrize("constrained", [True, False])
def test_own_codes_are_all_tokens_with_the_others_impossible(constrained):
  sizes = (200, 300, 7)  # a wide level, then narrow ones
  codes = random_codes(np.random.default_rng(0), 500, sizes)
  tree = trie.build_trie(codes, sizes)
  own, full = (OwnCodes(Layout(sizes), full, 2) for full in (False, True))
  got = search(own, tree, 6, constrained=constrained)
  want = search(full, tree, 6, constrained=constrained)
  np.testing.assert_array_equal(got.codes, want.codes)
  np.testing.assert_array_equal(got.item_index, want.item_index)
  np.testing.assert_allclose(got.scores, want.scores, atol=1e-5)
  scores = np.asarray(exact_scores(own, tree))
  assert np.isfinite(scores).all()
  np.testing.assert_allclose(scores, exact_scores(full, tree), atol=1e-5)


def numbered_codes(draw, num_items, sizes):
  """Random codes that end in a number of the item's own."""
  codes = random_codes(draw, num_items, sizes)
  codes[:, -1] = draw.permutation(sizes[-1])[:num_items]
  return codes


@pytest.mark.parametrize("denial", [None, "list", "mask"])
@pytest.mark.parametrize(
  ("width", "sizes"),
  # Many children a node, bitmasks, one child a node.
  [(1, (6, 5, 40)), (9, (6, 5, 40)), (35, (6, 70, 40)), (9, (999, 3, 40))],
)
def test_the_best_of_two_paths(denial, width, sizes):
  draw = np.random.default_rng(1)
  codes = numbered_codes(draw, 30, sizes)
  kept = np.sort(draw.permutation(30)[:25]).astype(np.int32)  # 5 were removed
  tree = trie.build_trie(
    codes[kept], sizes, item_index=kept, catalog_size=30, narrow_children=3
  )
  model = TableModel(Layout(sizes), 3, 0)
  direct = jax.nn.log_softmax(4.0 * draw.normal(size=(3, 40)).astype("float32"))
  refused = draw.random((3, 30)) < (0.0 if denial is None else 0.4)
  options = {}
  if denial == "list":
    lists = np.where(refused, np.arange(30, dtype=np.int32), -1)
    options["denied_items"] = jnp.asarray(lists)
  elif denial == "mask":
    options["item_mask"] = jnp.asarray(~refused)
  plain = search(model, tree, width, **options)
  got = search(model, tree, width, direct=direct, **options)
  moved = 0
  for b in range(3):
    want = np.exp(direct[b])[codes[:, 2]] / 2
    for item, score in zip(plain.item_index[b], plain.scores[b], strict=True):
      if item >= 0:  # a beam: what the search found adds its half
        want[item] += np.exp(score) / 2
    want[refused[b]] = 0
    want[np.setdiff1d(np.arange(30), kept)] = 0
    order = np.argsort(-want, kind="stable")[: min(width, (want > 0).sum())]
    np.testing.assert_array_equal(got.item_index[b, : order.size], order)
    np.testing.assert_array_equal(got.codes[b, : order.size], codes[order])
    np.testing.assert_allclose(
      np.exp(got.scores[b, : order.size]), want[order], rtol=1e-4
    )
    assert not got.valid[b, order.size :].any()
    moved += (~np.isin(order, plain.item_index[b])).sum()
  # Narrow beams lack some of what the other path finds; wide ones nothing.
  assert (moved > 0) == (width < 25)


@pytest.mark.parametrize("append_eos", [False, True])
def test_all_beams_of_two_paths_are_the_exact_ranking(append_eos):
  sizes = (6, 5, 40)
  codes = numbered_codes(np.random.default_rng(2), 30, sizes)
  model = TableModel(Layout(sizes, append_eos), 2, 0, scale=0.2)
  tree = trie.build_trie(codes, sizes)
  direct = jax.nn.log_softmax(jax.random.normal(jax.random.key(0), (2, 40)))
  # More beams than items: empty places stay empty.
  got = search(model, tree, 35, direct=direct)
  exact = np.asarray(exact_scores(model, tree, direct=direct))
  want = np.argsort(-exact, axis=1, kind="stable")
  np.testing.assert_array_equal(got.item_index[:, :30], want)
  np.testing.assert_allclose(
    got.scores[:, :30], np.take_along_axis(exact, want, 1), atol=1e-5
  )
  assert (got.scores[:, 30:] == -np.inf).all()
  assert not got.valid[:, 30:].any()


@pytest.mark.parametrize(
  ("codes", "shape", "options", "message"),
  [
    ([[0, 1], [2, 3]], (2, 3), {}, r"shape \(2, 3\); want \(2, 4\)"),
    ([[0, 1], [0, 1]], (2, 4), {}, "own number as last code"),
    ([[0, 1], [2, -1]], (2, 4), {}, "own number as last code"),
    (
      [[0, 1], [0, 2], [1, 1], [1, 2], [2, 1]],
      (2, 4),
      {},
      "outnumber the last",
    ),
    ([[0, 1], [2, 3]], (2, 4), {"constrained": False}, "constrained=True"),
  ],
)
def test_direct_paths_to_other_ids_are_refused(codes, shape, options, message):
  tree = trie.build_trie(np.array(codes, np.int32), (3, 4))
  layout = Layout((3, 4), append_eos=tree.has_end)
  model, direct = TableModel(layout, 2, 0), jnp.zeros(shape)
  with pytest.raises(InputError, match=message):
    search(model, tree, 2, direct=direct, **options)
  if not options:
    with pytest.raises(InputError, match=message):
      exact_scores(model, tree, direct=direct)


CASES = [
  # sizes, items, beam, batch, variable, narrow_children, constrained
  ((5,), 5, 3, 2, False, 64, True),
  ((4, 6, 5), 40, 7, 3, False, 64, True),
  ((4, 6, 5), 40, 7, 3, False, 0, False),
  ((40, 33, 70), 300, 20, 2, False, 4, True),
  ((40, 33, 70), 300, 20, 2, True, 4, True),
  ((200, 300), 500, 6, 2, True, 4, True),
  ((200, 300), 500, 6, 2, True, 4, False),
  ((3, 3, 3, 3), 30, 5, 4, True, 64, True),
  ((3, 3, 3, 3), 30, 64, 2, True, 0, False),
  ((6, 7, 8, 9, 10, 4, 3, 2), 50, 10, 2, False, 64, True),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_equals_brute_force(case):
  sizes, num_items, beam, batch, variable, narrow, constrained = CASES[case]
  rng = np.random.default_rng(case)
  codes = random_codes(rng, num_items, sizes, variable)
  layout = Layout(sizes, append_eos=variable or case % 3 == 1)
  model = TableModel(layout, batch, seed=case, padding=case % 3)
  tree = trie.build_trie(codes, sizes, narrow_children=narrow)
  result = search(model, tree, beam, constrained=constrained)
  assert result.codes.shape == (batch, beam, len(sizes))
  check_against_brute(result, model, codes, (beam,) * len(sizes), constrained)


TUNINGS = [
  extension.Tuning(selection="kernel", normalizer="one_pass"),
  extension.Tuning(selection="sort", normalizer="two_pass"),
  extension.Tuning(selection="groups", group_first=False),
]


@pytest.mark.parametrize("tuning", TUNINGS, ids=lambda t: t.selection)
def test_tuning_changes_nothing(tuning):
  sizes = (70, 90)
  codes = random_codes(np.random.default_rng(0), 600, sizes, True)
  model = TableModel(Layout(sizes, append_eos=True), 2, seed=0)
  tree = trie.build_trie(codes, sizes, narrow_children=4)
  result = search(model, tree, 9, tuning=tuning)
  check_against_brute(result, model, codes, (9, 9))


def test_removed_items_are_not_found():
  sizes = (4, 5, 3)
  codes = random_codes(np.random.default_rng(0), 30, sizes)
  model = TableModel(Layout(sizes), 2, seed=0)
  tree = trie_update.update(
    trie.build_trie(codes, sizes), codes, np.arange(30) >= 20
  )
  result = search(model, tree, 30)
  for b in range(2):
    assert sorted(result.item_index[b]) == [-1] * 20 + list(range(20, 30))
  scores = np.asarray(exact_scores(model, tree))
  assert (scores[:, :20] == -np.inf).all()
  np.testing.assert_allclose(
    np.sort(scores[:, 20:])[:, ::-1], result.scores[:, :10], atol=6e-6
  )


def test_widths_of_each_level():
  sizes, widths = (6, 6, 6), (3, 9, 4)
  codes = random_codes(np.random.default_rng(0), 80, sizes)
  model = TableModel(Layout(sizes), 3, seed=0)
  result = search(model, trie.build_trie(codes, sizes), widths)
  check_against_brute(result, model, codes, widths)


def test_narrowing_at_a_level_of_single_children():
  codes = np.array([[i, i % 3, i % 2] for i in range(8)], np.int32)
  model = TableModel(Layout((8, 3, 2)), 2, seed=1)
  result = search(model, trie.build_trie(codes, (8, 3, 2)), (8, 5, 2))
  check_against_brute(result, model, codes, (8, 5, 2))


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_full_width_is_the_exact_ranking(seed, variable):
  sizes = (5, 40, 6)
  codes = random_codes(np.random.default_rng(seed), 150, sizes, variable)
  layout = Layout(sizes, append_eos=variable)
  model = TableModel(layout, 2, seed)
  tree = trie.build_trie(codes, sizes, narrow_children=8)
  num_items = len(codes)
  result = search(model, tree, num_items + 9)
  scores = np.asarray(exact_scores(model, tree))
  assert result.valid.sum(1).tolist() == [num_items] * 2
  lowest_id = np.lexsort(codes.T[::-1])
  for b in range(2):
    want = lowest_id[np.argsort(-scores[b, lowest_id], kind="stable")]
    assert result.item_index[b, :num_items].tolist() == want.tolist()
    # Two compilations may round the normalizer's sum differently.
    np.testing.assert_allclose(
      result.scores[b, :num_items], scores[b, want], rtol=0, atol=6e-6
    )
    brute = [item_log_likelihood(model, b, row) for row in codes]
    np.testing.assert_allclose(scores[b], brute, rtol=0, atol=1e-5)


def test_ties_go_to_the_lowest_id():
  # A constant model: every ID of one length has the same score.
  sizes = (4, 50, 4)
  codes = random_codes(np.random.default_rng(3), 90, sizes)
  for narrow in (0, 64):
    model = TableModel(Layout(sizes), 2, seed=0, scale=0.0)
    tree = trie.build_trie(codes, sizes, narrow_children=narrow)
    result = search(model, tree, 12)
    want = sorted(map(tuple, codes.tolist()))[:12]
    for b in range(2):
      assert [tuple(row) for row in result.codes[b].tolist()] == want


def test_a_finished_beam_survives_and_is_not_improved():
  # [0] ends at once with p = 0.9 * 0.9; the others share the rest.
  codes = np.array([[0, -1], [1, 0], [1, 1]], np.int32)
  layout = Layout((2, 2), append_eos=True, num_others=0)

  def logits(tokens, cache, level):
    tables = [
      [[0.0, 0.0, 0.9, 0.1, 0.0, 0.0]],
      [[0.1, 0.9, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.5, 0.5]],
      [[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]] * 3,
    ]
    p = jnp.log(jnp.array([tables[level]]))[:, : tokens.shape[1]]
    return p, cache

  tree = trie.build_trie(codes, (2, 2))
  result = beam_search.beam_search(
    logits, {}, tree, layout, batch_size=1, beam_width=3
  )
  assert result.codes[0].tolist() == [[0, -1], [1, 0], [1, 1]]
  np.testing.assert_allclose(
    np.exp(result.scores[0]), [0.81, 0.05, 0.05], rtol=1e-6
  )


def test_a_probability_of_zero_is_not_returned():
  codes = np.array([[0], [1], [2]], np.int32)
  logits = jnp.array([[[0.0, 0.0, -jnp.inf, 1.0, jnp.nan]]])
  result = beam_search.beam_search(
    lambda tokens, cache, level: (jnp.where(jnp.isnan(logits), 0.0, logits), 0),
    {},
    trie.build_trie(codes, (3,)),
    Layout((3,), num_others=0),
    batch_size=1,
    beam_width=3,
  )
  assert result.item_index[0].tolist() == [1, 2, -1]


def test_one_trace_for_batches_of_one_shape():
  sizes = (4, 6, 5)
  codes = random_codes(np.random.default_rng(0), 40, sizes)
  tree = jax.device_put(trie.build_trie(codes, sizes))
  model = TableModel(Layout(sizes), 2, seed=0)

  @jax.jit
  def run(cache, tree):
    return beam_search.beam_search(
      model, cache, tree, model.layout, batch_size=2, beam_width=6
    )

  for start in range(4):
    run({"hash": jnp.full((2, 1), start, jnp.int32)}, tree)
  assert model.calls == [(0, (2, 1)), (1, (2, 4)), (2, (2, 6))]


def test_refusals():
  codes = np.array([[0, 1], [1, 0]], np.int32)
  tree = trie.build_trie(codes, (2, 2))
  model = TableModel(Layout((2, 2)), 1, seed=0)

  def run(tree=tree, layout=model.layout, model=model, beam_width=2):
    return beam_search.beam_search(
      model, model.cache(), tree, layout, batch_size=1, beam_width=beam_width
    )

  with pytest.raises(InputError, match="beam_width must be at least 1; got 0"):
    run(beam_width=0)
  with pytest.raises(InputError, match="names 3 levels, the trie has 2"):
    run(beam_width=(2, 2, 2))
  with pytest.raises(InputError, match=r"codebook sizes \(2, 3\)"):
    run(layout=Layout((2, 3)))
  with pytest.raises(InputError, match=r"\(1, 1, 9\) at level 0.* or V = 2 f"):
    run(layout=Layout((2, 2), num_others=9))
  ended = OwnCodes(Layout((2, 2), append_eos=True), full=False)
  with pytest.raises(InputError, match="of the 2 codes of level 0 alone, but"):
    run(layout=ended.layout, model=ended)
  variable = trie.build_trie(np.array([[0, -1], [1, 0]], np.int32), (2, 2))
  with pytest.raises(InputError, match="append_eos=True"):
    run(tree=variable)
  with pytest.raises(InputError, match="chunk_size must be at least 1"):
    exact.exact_scores(
      model,
      model.cache(),
      tree,
      model.layout,
      batch_size=1,
      chunk_size=0,
    )
