import dataclasses

import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import splits
from gr_jax.data.interactions import Interactions, offsets_from_lengths


def make(lengths, times=None, absolute=True):
  total = sum(lengths)
  return Interactions(
    user_ids=tuple(f"u{n}" for n in range(len(lengths))),
    items=np.arange(total, dtype=np.int32),
    offsets=offsets_from_lengths(np.asarray(lengths)),
    times=None if times is None else np.asarray(times, np.float64),
    absolute_times=absolute and times is not None,
  )


def as_lists(data, examples):
  """[(history, target)] with items equal to their positions."""
  return [
    (data.items[start:target].tolist(), int(data.items[target]))
    for start, target in zip(
      examples.history_start, examples.target_position, strict=True
    )
  ]


def test_leave_one_out_by_hand():
  data = make([3, 4])
  split = splits.leave_one_out(data)
  np.testing.assert_array_equal(split.train_end, [1, 5])
  assert as_lists(data, split.validation) == [([0], 1), ([3, 4], 5)]
  assert as_lists(data, split.test) == [([0, 1], 2), ([3, 4, 5], 6)]
  np.testing.assert_array_equal(split.test.user_index, [0, 1])
  assert split.test.user_index.dtype == np.int32
  assert split.train_end.dtype == np.int64


def test_global_time_by_hand():
  # Ten interactions: training before time 6, test from time 8 on.
  data = make([4, 4, 2], [0, 1, 6, 8, 2, 3, 4, 5, 7, 9])
  split = splits.global_time_split(data, validation_share=0.2, test_share=0.2)
  np.testing.assert_array_equal(split.train_end, [2, 8, 8])
  # User 2 has no history before time 7 and is tested only afterwards.
  assert as_lists(data, split.validation) == [([0, 1], 2)]
  assert as_lists(data, split.test) == [([0, 1, 2], 3), ([8], 9)]


@pytest.mark.parametrize("seed", range(5))
def test_global_time_never_looks_ahead(seed):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, 12, 40)
  times = np.concatenate([np.sort(rng.integers(0, 50, n)) for n in lengths])
  data = make(lengths.tolist(), times)
  split = splits.global_time_split(data, validation_share=0.2, test_share=0.2)
  trained = np.zeros(times.size, bool)
  for start, end in zip(data.offsets[:-1], split.train_end, strict=True):
    trained[start:end] = True
  validation = data.times[split.validation.target_position]
  test = data.times[split.test.target_position]
  assert data.times[trained].max() < validation.min()
  assert validation.max() < test.min()
  # What is held out starts at one moment for everyone.
  assert data.times[~trained].min() > data.times[trained].max()


def test_cold_start_by_hand():
  data = make([5, 4, 4])
  cold = np.zeros(13, bool)
  cold[[2, 3, 5, 12]] = True
  split = splits.cold_start_split(data, cold)
  np.testing.assert_array_equal(split.train_end, [2, 5, 11])
  # Item 3 is cold, so user 0 validates nothing; user 1 starts with a cold one.
  assert as_lists(data, split.validation) == [([5, 6], 7), ([9, 10], 11)]
  assert as_lists(data, split.test) == [
    ([0, 1], 2),
    ([0, 1, 2], 3),
    ([9, 10, 11], 12),
  ]


@pytest.mark.parametrize("seed", range(5))
def test_no_cold_item_is_trained_on(seed):
  rng = np.random.default_rng(seed)
  data = make(rng.integers(3, 9, 30).tolist())
  data = dataclasses.replace(
    data, items=rng.integers(20, size=data.items.size).astype(np.int32)
  )
  cold = np.arange(20) < 3
  split = splits.cold_start_split(data, cold)
  for start, end in zip(data.offsets[:-1], split.train_end, strict=True):
    assert not cold[data.items[start:end]].any()
  assert cold[data.items[split.test.target_position]].all()
  assert not cold[data.items[split.validation.target_position]].any()


def test_later_day_by_hand():
  day = 86_400
  data = make([3, 3], [0, 10, 20, 0, day - 1, day], absolute=False)
  test = splits.leave_one_out(data).test
  np.testing.assert_array_equal(splits.later_day(data, test), [False, True])
  assert splits.later_day(make([3, 3]), test) is None


def test_examples_are_taken_by_mask():
  data = make([3, 4])
  test = splits.leave_one_out(data).test.take(np.array([False, True]))
  assert test.num_examples == 1
  assert as_lists(data, test) == [([3, 4, 5], 6)]


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (
      lambda: splits.leave_one_out(make([3, 2, 1])),
      r"2 of 3 users have fewer than 3 items, the first is user 'u1' with 2; "
      r".*min_user_interactions=3",
    ),
    (lambda: splits.global_time_split(make([3])), "this data has none"),
    (
      lambda: splits.global_time_split(make([3], [0, 1, 2], absolute=False)),
      "only gaps within a user",
    ),
    (
      lambda: splits.global_time_split(
        make([3], [0, 1, 2]), validation_share=0.5, test_share=0.5
      ),
      "positive shares below 1",
    ),
    (
      lambda: splits.global_time_split(make([1, 1, 1], [0, 1, 2])),
      "No user with a history has an interaction in the validation period",
    ),
    (
      lambda: splits.cold_start_split(make([3]), np.zeros(3, bool)),
      "None of the 0 cold items was ever chosen",
    ),
  ],
)
def test_refusals(build, message):
  with pytest.raises(InputError, match=message):
    build()
