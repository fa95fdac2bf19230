import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import artifact
from gr_jax.core.checks import InputError
from gr_jax.decoding import constraint, leaves, trie, trie_update
from tests.decoding.table_model import random_codes, strip


def equal(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def test_three_items_by_hand():
  codes = np.array([[1, 0], [0, 2], [0, 1], [0, 2]], np.int32)
  tree = trie.build_trie(codes, (2, 3), narrow_children=1)
  assert tree.item_order.tolist() == [2, 1, 3, 0]
  assert tree.item_position.tolist() == [3, 1, 0, 2]
  first, second = tree.levels
  # The root's children are 0 and 1; node 0's are codes 1 and 2, node 1's is 0.
  assert first.child_code.tolist() == [0, 1]
  assert first.child_extra.tolist() == [0, 1]
  assert first.child_bits.tolist() == [[0b11]]
  assert first.item_extra.tolist() == [0, 2, 2]  # items 0-3 and 3-4
  assert second.child_code.tolist() == [1, 2, 0]
  assert second.child_extra.tolist() == [0, 1, 1]
  assert second.child_bits.tolist() == [[0b110], [0b001]]
  assert second.item_extra.tolist() == [0, 0, 1, 1]
  assert (second.max_children, tree.num_leaves, tree.num_items) == (2, 3, 4)


def test_smallest_dtypes_and_identities():
  codes = np.array([[0, 5, 300], [1, 4, 2], [1, 6, 70]], np.int32)
  tree = trie.build_trie(codes, (2, 256, 65_537))
  assert [str(level.child_code.dtype) for level in tree.levels] == [
    "uint8",
    "uint8",
    "uint32",
  ]
  assert tree.levels[2].child_extra is None  # one child each
  assert tree.levels[2].item_extra is None  # one item each
  assert tree.item_order is None  # sorted already
  assert tree.num_bytes < 60


@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("sizes", [(9, 4, 5), (3000,) * 7, (2**20,) * 4])
def test_holds_exactly_the_prefixes(sizes, variable):
  rng = np.random.default_rng(len(sizes))
  codes = random_codes(rng, 80, sizes, variable, distinct=False)
  tree = trie.build_trie(codes, sizes, narrow_children=3)
  width = len(sizes)
  ids = sorted({tuple(row) for row in codes.tolist()})
  for l in range(width):
    assert tree.levels[l].num_children == len({i[: l + 1] for i in ids})
  held_order = np.arange(80) if tree.item_order is None else tree.item_order
  read = np.stack(trie_update.sorted_codes(tree), axis=-1).astype(int)
  np.testing.assert_array_equal(read - tree.has_end, codes[held_order])
  assert tree.num_leaves == len(ids)
  start, count = constraint.leaf_item_range(
    jax.tree.map(jnp.asarray, tree), jnp.arange(-1, len(ids))
  )
  order = np.arange(80) if tree.item_order is None else tree.item_order
  assert int(count[0]) == 0
  for leaf, one in enumerate(ids):
    begin = int(start[leaf + 1])
    items = order[begin : begin + int(count[leaf + 1])]
    want = np.flatnonzero((codes == one).all(1))
    assert items.tolist() == want.tolist()
  assert strip(ids[0])


@pytest.mark.parametrize("narrow", [0, 64])
def test_child_nodes_and_masks(narrow):
  sizes = (5, 70)
  codes = random_codes(np.random.default_rng(0), 60, sizes)
  tree = trie.build_trie(codes, sizes, narrow_children=narrow)
  level = jax.tree.map(jnp.asarray, tree).levels[1]
  firsts = sorted({int(c) for c in codes[:, 0]})
  pairs = sorted({tuple(row) for row in codes.tolist()})
  node = jnp.arange(len(firsts), dtype=jnp.int32)[None]
  masked = constraint.allowed_log_probs(
    level, node, jnp.zeros((1, len(firsts), 70))
  )
  for code in (0, 31, 32, 33, 69, *codes[:4, 1].tolist()):
    child = constraint.child_node(level, node, jnp.full_like(node, code))
    want = [
      pairs.index((f, code)) if (f, code) in pairs else -1 for f in firsts
    ]
    assert child[0].tolist() == want
    assert (masked[0, :, code] == 0).tolist() == [w >= 0 for w in want]
  outside = constraint.child_node(level, jnp.full_like(node, -1), node)
  assert (outside == -1).all()


def test_arrays_round_trip(tmp_path):
  codes = random_codes(np.random.default_rng(0), 50, (9, 40, 5), True)
  tree = trie.build_trie(codes, (9, 40, 5), narrow_children=8)
  artifact.save(
    tmp_path / "trie", kind="trie", config={}, arrays=trie.to_arrays(tree)
  )
  loaded = artifact.load(tmp_path / "trie", kind="trie")
  equal(trie.from_arrays(loaded.arrays), tree)
  arrays = trie.to_arrays(tree)
  del arrays["level_1_child_code"]
  with pytest.raises(InputError, match="lack 'level_1_child_code'"):
    trie.from_arrays(arrays)


@pytest.mark.parametrize("variable", [False, True])
def test_an_update_equals_a_new_build(variable):
  rng = np.random.default_rng(4)
  sizes = (6, 5, 4)
  codes = random_codes(rng, 60, sizes, variable, distinct=False)
  whole = trie.build_trie(codes, sizes)
  tree = trie.build_trie(codes[:45], sizes)
  equal(trie_update.update(tree, codes), whole)
  for _ in range(5):  # each from the one before
    held = rng.random(60) < 0.6
    kept = np.flatnonzero(held)
    tree = trie_update.update(tree, codes, held)
    equal(tree, some_items(codes, sizes, kept))
  equal(trie_update.update(tree, codes), whole)
  # IDs that changed meanwhile go to their new places.
  moved = codes.copy()
  moved[[3, 50]] = codes[[50, 3]]
  equal(trie_update.update(tree, moved), trie.build_trie(moved, sizes))


def some_items(codes, sizes, kept):
  return trie.build_trie(
    codes[kept], sizes, item_index=kept, catalog_size=len(codes)
  )


def test_a_trie_of_some_items():
  codes = random_codes(np.random.default_rng(0), 20, (5, 6), distinct=False)
  kept = np.array([1, 4, 5, 11, 18])
  tree = some_items(codes, (5, 6), kept)
  assert (tree.num_items, tree.catalog_size) == (5, 20)
  assert sorted(tree.item_order) == kept.tolist()
  assert (tree.item_position >= 0).tolist() == np.isin(range(20), kept).tolist()
  with pytest.raises(InputError, match="item_index must ascend within .0, 20"):
    trie.build_trie(
      codes[:2], (5, 6), item_index=np.array([4, 1]), catalog_size=20
    )
  with pytest.raises(InputError, match="5 items, catalog_size=None"):
    trie.build_trie(codes[kept], (5, 6), item_index=kept)


def test_adding_a_shorter_id_makes_room_for_ends():
  tree = trie.build_trie(np.array([[0, 1], [1, 0]], np.int32), (2, 2))
  want = np.array([[0, 1], [1, 0], [1, -1]], np.int32)
  added = trie_update.update(tree, want)
  equal(added, trie.build_trie(want, (2, 2)))
  # And back, without the one that ended.
  held = np.array([True, True, False])
  fewer = trie_update.update(added, want, held)
  equal(fewer, some_items(want, (2, 2), np.arange(2)))
  other = trie_update.update(fewer, want, ~held)  # nothing stays
  equal(other, some_items(want, (2, 2), np.array([2])))


def test_update_refusals():
  codes = np.array([[0, 1], [1, 0]], np.int32)
  tree = trie.build_trie(codes, (2, 2))
  with pytest.raises(InputError, match="at least the trie's 2; got 1"):
    trie_update.update(tree, codes[:1])
  with pytest.raises(InputError, match="at least one item; hold one"):
    trie_update.update(tree, codes, np.zeros(2, bool))
  with pytest.raises(InputError, match="Item 0 has code 5 at level 0"):
    trie_update.update(tree, codes + 5)


@pytest.mark.parametrize(
  ("codes", "sizes", "match"),
  [
    (np.zeros((0, 2), np.int32), (2, 2), "at least one item"),
    ([[0, 1]], (2,), "2 levels but codebook_sizes names 1"),
    ([[0, 1], [0, 2]], (2, 2), "Item 1 has code 2 at level 1"),
    ([[0, -2]], (2, 2), "Item 0 has code -2"),
    ([[-1, -1]], (2, 2), "Item 0 has no code at level 0"),
    ([[0, -1, 1]], (2, 2, 2), "code at level 2 after -1"),
  ],
)
def test_bad_codes_are_refused(codes, sizes, match):
  with pytest.raises(InputError, match=match):
    trie.build_trie(np.asarray(codes, np.int32), sizes)


def test_leaves_expand_to_their_items():
  codes = np.array([[1, 0], [0, 2], [0, 1], [0, 2], [0, 2]], np.int32)
  tree = trie.build_trie(codes, (2, 3))
  leaf = jnp.array([[1, -1, 2, 0], [-1, -1, -1, -1]], jnp.int32)
  item, place = leaves.expand_items(tree, leaf, num_items=6)
  assert item.tolist() == [[1, 3, 4, 0, 2, -1], [-1] * 6]
  assert place.tolist() == [[0, 0, 0, 2, 3, -1], [-1] * 6]
  cut, _ = leaves.expand_items(tree, leaf, num_items=2)
  assert cut.tolist() == [[1, 3], [-1, -1]]


def test_leaves_are_sampled_evenly(key):
  codes = np.array([[1, 0], [0, 2], [0, 1], [0, 2], [0, 2]], np.int32)
  tree = trie.build_trie(codes, (2, 3))
  leaf = jnp.broadcast_to(jnp.array([1, -1, 2], jnp.int32)[None], (3000, 3))
  item = np.asarray(leaves.sample_items(tree, leaf, key=key))
  assert (item[:, 1] == -1).all()
  assert (item[:, 2] == 0).all()
  share = np.bincount(item[:, 0], minlength=5) / 3000
  # Four standard errors around a third each, for items 1, 3 and 4.
  np.testing.assert_allclose(share[[1, 3, 4]], 1 / 3, atol=4 * 0.0086)
  assert share.sum() == pytest.approx(share[[1, 3, 4]].sum())
