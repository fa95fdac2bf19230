import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.core import checks
from gr_jax.data import splits
from gr_jax.data.interactions import Interactions
from gr_jax.sids.sid_catalog import SidCatalog
from gr_jax.sids.vocabulary import SidVocabulary
from gr_jax.tasks import windows


def make_interactions(histories):
  lengths = [len(history) for history in histories]
  return Interactions(
    user_ids=tuple(f"u{n}" for n in range(len(histories))),
    items=np.array([i for h in histories for i in h], np.int32),
    offsets=np.cumsum([0, *lengths], dtype=np.int64),
    times=None,
  )


def random_world(seed, *, variable, num_items=30, num_users=12):
  """Interactions with histories of 3-15 items, and a catalog of their IDs."""
  rng = np.random.default_rng(seed)
  sizes = (5, 4, 6)
  distinct = rng.permutation(5 * 4 * 6)[:num_items]
  codes = np.stack(np.unravel_index(distinct, sizes), 1).astype(np.int32)
  if variable:
    # Level 1 goes from some IDs; the last level then tells them apart.
    codes[::3, 1] = -1
    codes[::4, 2] = -1
  extra = np.arange(num_items, dtype=np.int32)[:, None]
  catalog = SidCatalog.from_levels(
    [f"i{n}" for n in range(num_items)],
    np.concatenate([codes, extra], 1),
    (*sizes, num_items),
    num_semantic_levels=3,
  )
  histories = [
    rng.permutation(num_items)[: rng.integers(3, 16)] for _ in range(num_users)
  ]
  return make_interactions(histories), catalog


def slow_tokens(vocabulary, catalog, item):
  """An item's tokens, one code after the other."""
  row = catalog.codes[item].tolist()
  offsets = vocabulary.level_offsets
  return [o + c for o, c in zip(offsets, row, strict=True) if c >= 0]


def slow_window(interactions, catalog, vocabulary, example, max_history):
  """One example written out with Python lists."""
  user, start, target = example
  history = interactions.items[start:target].tolist()[-max_history:]
  inputs = []
  if vocabulary.num_user_buckets:
    inputs.append(vocabulary.user_token(interactions.user_ids[user]))
  for item in history:
    inputs += slow_tokens(vocabulary, catalog, item)
  inputs.append(1)
  targets = slow_tokens(vocabulary, catalog, interactions.items[target])
  if vocabulary.append_eos:
    targets.append(1)
  return inputs, targets


def slow_examples(interactions, split, augmentation, max_history):
  """All examples by nested loops over users, targets and starts."""
  out = []
  for user in range(len(interactions.user_ids)):
    first, end = interactions.offsets[user], split.train_end[user]
    for target in range(first + 1, end):
      if augmentation == "none" and target != end - 1:
        continue
      if augmentation == "sequences" and (end - 1 - target) % max_history:
        continue
      starts = [s for s in range(first, target) if target - s <= max_history]
      if augmentation != "subsequences":
        starts = starts[:1]
      out += [(user, start, target) for start in starts]
  return out


def as_tuples(examples):
  return list(
    zip(
      examples.user_index.tolist(),
      examples.history_start.tolist(),
      examples.target_position.tolist(),
      strict=True,
    )
  )


def test_examples_by_hand():
  interactions = make_interactions([[7, 8, 9, 3, 4, 5], [1, 2, 6]])
  split = splits.leave_one_out(interactions)
  # User 0 trains on 7 8 9 3 and keeps 4, 5 back; user 1 on its 1 alone.
  cut = {
    name: as_tuples(windows.training_examples(interactions, split, name, 2))
    for name in windows.AUGMENTATIONS
  }
  assert cut["prefixes"] == [(0, 0, 1), (0, 0, 2), (0, 1, 3)]
  assert cut["subsequences"] == [
    (0, 0, 1),
    (0, 0, 2),
    (0, 1, 2),
    (0, 1, 3),
    (0, 2, 3),
  ]
  assert cut["none"] == [(0, 1, 3)]
  assert cut["sequences"] == [(0, 0, 1), (0, 1, 3)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("augmentation", windows.AUGMENTATIONS)
@pytest.mark.parametrize("max_history", [1, 4, 50])
def test_examples_equal_nested_loops(seed, augmentation, max_history):
  interactions, _ = random_world(seed, variable=False)
  split = splits.leave_one_out(interactions)
  found = windows.training_examples(
    interactions, split, augmentation, max_history
  )
  assert as_tuples(found) == slow_examples(
    interactions, split, augmentation, max_history
  )
  assert found.target_position.dtype == np.int32


@pytest.mark.parametrize("augmentation", windows.AUGMENTATIONS)
def test_training_never_sees_held_out_items(augmentation):
  # Every held-out item is one that nobody has in their training part.
  histories = [[n, n + 1, n + 2, 50 + n, 70 + n] for n in range(9)]
  interactions = make_interactions(histories)
  split = splits.leave_one_out(interactions)
  examples = windows.training_examples(interactions, split, augmentation, 20)
  assert as_tuples(examples)
  for _, start, target in as_tuples(examples):
    assert interactions.items[start : target + 1].max() < 50


def test_batch_by_hand():
  catalog = SidCatalog(
    ("x", "y", "z"), np.array([[0, 0], [1, 1], [2, 0]], np.int32), (3, 2), 2
  )
  interactions = make_interactions([[0, 1, 2, 1]])
  vocabulary = SidVocabulary((3, 2), num_user_buckets=1)  # user 2, a 3, b 6
  examples = splits.Examples(*np.array([[0, 0], [0, 0], [1, 3]], np.int32))
  data = windows.training_data(interactions, catalog, vocabulary, examples)
  layout = windows.WindowLayout.create(catalog, vocabulary, max_history=2)
  batch = windows.gather_batch(data, jnp.array([1, 0], jnp.int32), layout)
  # The newest two of x y z are y z; the shorter history ends with padding.
  np.testing.assert_array_equal(
    batch.inputs, [[2, 4, 7, 5, 6, 1], [2, 3, 6, 1, 0, 0]]
  )
  np.testing.assert_array_equal(batch.targets, [[4, 7], [4, 7]])
  assert (layout.input_length, layout.target_length) == (6, 2)


@pytest.mark.parametrize(
  ("seed", "variable", "buckets", "max_history"),
  [
    (0, False, 0, 20),
    (1, False, 5, 4),
    (2, False, 5, 1),
    (0, True, 0, 4),
    (1, True, 5, 20),
    (2, True, 0, 1),
  ],
)
def test_batches_equal_python_lists(seed, variable, buckets, max_history):
  interactions, catalog = random_world(seed, variable=variable)
  assert catalog.is_variable_length == variable
  vocabulary = SidVocabulary.from_catalog(
    catalog, num_user_buckets=buckets, append_eos=variable or seed == 2
  )
  split = splits.leave_one_out(interactions)
  train = windows.training_examples(interactions, split)
  layout = windows.WindowLayout.create(
    catalog, vocabulary, max_history=max_history
  )
  gather = jax.jit(windows.gather_batch, static_argnames="layout")
  for examples in (train, split.validation, split.test):
    data = windows.training_data(interactions, catalog, vocabulary, examples)
    index = jnp.arange(data.num_examples, dtype=jnp.int32)
    batch = gather(data, index, layout=layout)
    assert batch.inputs.shape == (data.num_examples, layout.input_length)
    assert batch.targets.shape == (data.num_examples, layout.target_length)
    assert batch.inputs.dtype == batch.targets.dtype == jnp.int32
    batch = jax.tree.map(np.asarray, batch)
    for row, example in enumerate(as_tuples(examples)):
      inputs, targets = slow_window(
        interactions, catalog, vocabulary, example, max_history
      )
      inputs += [0] * (layout.input_length - len(inputs))
      targets += [0] * (layout.target_length - len(targets))
      assert batch.inputs[row].tolist() == inputs
      assert batch.targets[row].tolist() == targets


@pytest.mark.parametrize("variable", [False, True])
def test_vmap_over_replicas_and_permuted_rows(variable):
  interactions, catalog = random_world(0, variable=variable)
  vocabulary = SidVocabulary.from_catalog(catalog)
  split = splits.leave_one_out(interactions)
  examples = windows.training_examples(interactions, split)
  data = windows.training_data(interactions, catalog, vocabulary, examples)
  layout = windows.WindowLayout.create(catalog, vocabulary, max_history=5)
  rng = np.random.default_rng(0)
  index = rng.integers(0, data.num_examples, (3, 8)).astype(np.int32)
  gather = jax.jit(lambda i: windows.gather_batch(data, i, layout))
  many = jax.jit(jax.vmap(gather))(jnp.asarray(index))
  for row in range(3):
    one = gather(jnp.asarray(index[row]))
    np.testing.assert_array_equal(many.inputs[row], one.inputs)
    np.testing.assert_array_equal(many.targets[row], one.targets)


def test_histories_from_outside():
  interactions, catalog = random_world(1, variable=True)
  vocabulary = SidVocabulary.from_catalog(catalog, num_user_buckets=3)
  layout = windows.WindowLayout.create(catalog, vocabulary, max_history=3)
  histories = [[4, 9, 2, 0, 5], [], [7]]
  users = vocabulary.user_tokens(["p", "q", "r"])
  tokens = vocabulary.tokens_from_codes(catalog.codes)
  data = windows.history_data(histories, tokens, users)
  gather = jax.jit(windows.gather_batch, static_argnames="layout")
  batch = gather(data, jnp.arange(3, dtype=jnp.int32), layout=layout)
  for row, history in enumerate(histories):
    want = [int(users[row])]
    for item in history[-3:]:
      want += slow_tokens(vocabulary, catalog, item)
    want.append(1)
    want += [0] * (layout.input_length - len(want))
    assert batch.inputs[row].tolist() == want
  bare = windows.history_data([[], []], tokens)
  np.testing.assert_array_equal(bare.user_tokens, [0, 0])


def test_data_survives_tree_maps_and_shapes():
  interactions, catalog = random_world(0, variable=False)
  vocabulary = SidVocabulary.from_catalog(catalog)
  split = splits.leave_one_out(interactions)
  data = windows.training_data(
    interactions, catalog, vocabulary, split.validation
  )
  layout = windows.WindowLayout.create(catalog, vocabulary, max_history=5)
  names = jax.tree.map(lambda leaf: str(leaf.dtype), data)
  assert names.items == "int32"
  shapes = jax.eval_shape(
    lambda d, i: windows.gather_batch(d, i, layout),
    data,
    jnp.zeros(7, jnp.int32),
  )
  assert shapes.inputs.shape == (7, layout.input_length)


def test_bad_input_is_refused():
  interactions, catalog = random_world(0, variable=False)
  vocabulary = SidVocabulary.from_catalog(catalog)
  split = splits.leave_one_out(interactions)
  with pytest.raises(checks.InputError, match=r"'prefix'.*mean 'prefixes'"):
    windows.training_examples(interactions, split, "prefix")
  with pytest.raises(checks.InputError, match=r"at least 1 item; got 0"):
    windows.training_examples(interactions, split, max_history=0)
  short = make_interactions([[1, 2, 3], [4, 5, 6]])
  with pytest.raises(checks.InputError, match=r"None of 2 users has two"):
    windows.training_examples(short, splits.leave_one_out(short))
  foreign = make_interactions([[1, 2, 3, 30]])
  with pytest.raises(checks.InputError, match=r"index 30, .* has 30 items"):
    windows.training_data(foreign, catalog, vocabulary, split.validation)
  data = windows.training_data(interactions, catalog, vocabulary, split.test)
  layout = windows.WindowLayout.create(catalog, vocabulary, max_history=5)
  wrong = dataclasses.replace(layout, num_levels=3)
  with pytest.raises(checks.InputError, match=r"have 4 tokens, .*num_levels=3"):
    windows.gather_batch(data, jnp.zeros(2, jnp.int32), wrong)
  with pytest.raises(checks.InputError, match=r"at least 1; got 0 and 4"):
    dataclasses.replace(layout, max_history=0)
  tokens = vocabulary.tokens_from_codes(catalog.codes)
  with pytest.raises(checks.InputError, match=r"No history was given"):
    windows.history_data([], tokens)
  with pytest.raises(checks.InputError, match=r"index 30 is outside .* of 30"):
    windows.history_data([[1, 30]], tokens)


def test_every_item_has_the_next_as_its_target():
  catalog = SidCatalog(
    ("x", "y", "z"), np.array([[0, 0], [1, 1], [2, 0]], np.int32), (3, 2), 2
  )
  interactions = make_interactions([[0, 1, 2, 1]])
  vocabulary = SidVocabulary((3, 2), num_user_buckets=0)  # a 2, b 5
  layout = windows.WindowLayout(max_history=3, num_levels=2, every_item=True)
  examples = splits.Examples(*np.array([[0, 0], [0, 1], [3, 2]], np.int32))
  data = windows.training_data(interactions, catalog, vocabulary, examples)
  batch = windows.gather_batch(data, jnp.arange(2, dtype=jnp.int32), layout)
  np.testing.assert_array_equal(
    batch.inputs, [[2, 5, 3, 6, 4, 5, 1], [3, 6, 1, 0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(
    batch.targets, [[3, 6, 4, 5, 3, 6], [4, 5, 0, 0, 0, 0]]
  )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_history", [1, 4, 50])
def test_sequences_ask_for_every_item_once(seed, max_history):
  interactions, catalog = random_world(seed, variable=False)
  split = splits.leave_one_out(interactions)
  vocabulary = SidVocabulary.from_catalog(catalog)
  asked = []
  for augmentation in ("prefixes", "sequences"):
    layout = windows.WindowLayout.create(
      catalog,
      vocabulary,
      max_history=max_history,
      every_item=augmentation == "sequences",
    )
    examples = windows.training_examples(
      interactions, split, augmentation, max_history
    )
    data = windows.training_data(interactions, catalog, vocabulary, examples)
    index = jnp.arange(examples.num_examples, dtype=jnp.int32)
    targets = windows.gather_batch(data, index, layout).targets
    items = np.asarray(targets).reshape(-1, catalog.num_levels)
    items = items[items[:, 0] > 0]
    asked.append(items[np.lexsort(items.T)])
  np.testing.assert_array_equal(*asked)


@pytest.mark.parametrize(
  "change",
  [
    {"has_user_token": True},
    {"append_eos": True},
    {"is_variable_length": True},
  ],
)
def test_sequences_of_unequal_items_are_refused(change):
  with pytest.raises(checks.InputError, match="needs items of one length"):
    windows.WindowLayout(3, 2, every_item=True, **change)
