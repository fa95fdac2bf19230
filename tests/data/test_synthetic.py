import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import splits
from gr_jax.data.synthetic import SyntheticData


@pytest.fixture(scope="module")
def data():
  return SyntheticData().load()


def features(data):
  """Product kind, brand and color of every item, as numbers, from titles."""
  parts = [
    [*title.split(", "), path.split(" > ")[-1]]
    for title, path in zip(
      data.catalog.titles, data.catalog.categories, strict=True
    )
  ]
  columns = (
    [kind for *_, kind in parts],
    [first.removesuffix(" " + kind) for first, *_, kind in parts],
    [color for _, color, *_ in parts],
  )
  return [np.unique(column, return_inverse=True)[1] for column in columns]


def recall(scores, target):
  """Share of rows whose target is among the ten best, ties pessimistic."""
  own = scores[np.arange(target.size), target]
  return np.mean((scores >= own[:, None]).sum(axis=1) <= 10)


def test_equal_settings_make_equal_data():
  one, two, other = (
    SyntheticData(num_items=240, num_users=50, seed=seed).load()
    for seed in (3, 3, 4)
  )
  assert one.catalog == two.catalog
  for name, array in one.interactions.to_arrays().items():
    np.testing.assert_array_equal(array, two.interactions.to_arrays()[name])
  assert one.catalog != other.catalog


def test_sizes_and_readable_items(data):
  users, items, interactions = data.counts
  assert (users, items) == (4_000, 1_440)
  assert interactions / users == pytest.approx(10, abs=0.2)
  assert len(set(data.catalog.titles)) == items
  assert len(set(data.catalog.categories)) == 48
  title, path = data.catalog.titles[0], data.catalog.categories[0]
  assert path.count(" > ") == 2
  assert path.split(" > ")[-1] in title
  assert title in data.catalog.texts[0]
  assert path in data.catalog.texts[0]


def test_users_have_five_items_or_more_and_none_twice(data):
  assert data.interactions.lengths.min() >= 5
  for user in range(data.interactions.num_users):
    history = data.interactions.history(user)
    assert len(set(history.tolist())) == history.size


def test_times_serve_both_splits(data):
  later = splits.later_day(
    data.interactions, splits.leave_one_out(data.interactions).test
  )
  assert 0.25 < 1 - later.mean() < 0.45
  split = splits.global_time_split(data.interactions)
  assert split.test.num_examples > 500
  assert split.validation.num_examples > 500


def test_structure_beats_counting_by_far(data):
  """What a learner of features can reach against popularity and Markov."""
  kind, brand, color = features(data)
  log, num_items = data.interactions, data.catalog.num_items
  split = splits.leave_one_out(log)
  target = log.items[split.test.target_position]
  train = [
    log.items[start:end]
    for start, end in zip(log.offsets[:-1], split.train_end, strict=True)
  ]
  pairs = np.zeros((num_items, num_items))
  routines = np.zeros((48, 48, 48))
  for items in train:
    np.add.at(pairs, (items[:-1], items[1:]), 1)
    kinds = kind[items]
    np.add.at(routines, (kinds[:-2], kinds[1:-1], kinds[2:]), 1)
  popularity = np.bincount(np.concatenate(train), minlength=num_items)
  tie_break = popularity / popularity.sum()
  last = log.items[split.test.target_position - 1]
  before = log.items[split.test.target_position - 2]
  markov = pairs[last] + tie_break[None]
  learned = routines[kind[before], kind[last]][:, kind] + 1e-3
  for feature in (brand, color):
    seen = np.stack(
      [np.bincount(feature[items], minlength=8) for items in train]
    )
    learned = learned * np.exp(0.8 * seen)[:, feature]
  best = recall(learned, target)
  assert best > 0.5
  assert best > 10 * recall(np.tile(tie_break, (target.size, 1)), target)
  assert best > 1.8 * recall(markov, target)


def test_every_kind_is_reached(data):
  kind, *_ = features(data)
  counts = np.bincount(kind[data.interactions.items], minlength=48)
  assert counts.min() > 0.4 * counts.mean()


@pytest.mark.parametrize("num_items", [60, 61, 250, 3_000])
def test_any_number_of_items(num_items):
  data = SyntheticData(
    num_items=num_items, num_users=30, mean_length=8.0
  ).load()
  assert data.counts[:2] == (30, num_items)
  assert len(set(data.catalog.titles)) == num_items


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"num_items": 59}, "Need num_items >= 60 .* got self.num_items=59"),
    ({"num_users": 0}, "num_users >= 1; got .*num_users=0"),
    ({"mean_length": 4.0}, "5 <= mean_length .* got .*mean_length=4.0"),
    ({"num_items": 60, "mean_length": 16.0}, "num_items / 4 = 15"),
    ({"taste": 1.5}, "0 <= taste <= 1; got .*taste=1.5"),
  ],
)
def test_refusals(settings, message):
  with pytest.raises(InputError, match=message):
    SyntheticData(**settings).load()
