import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import interactions as interactions_lib
from gr_jax.data.interactions import Interactions


def make(histories, times=None, user_ids=None):
  lengths = [len(history) for history in histories]
  return Interactions(
    user_ids=user_ids or tuple(f"u{n}" for n in range(len(histories))),
    items=np.concatenate(histories).astype(np.int32),
    offsets=interactions_lib.offsets_from_lengths(np.asarray(lengths)),
    times=None if times is None else np.concatenate(times).astype(np.float64),
  )


def histories(data):
  return {
    user: data.history(n).tolist() for n, user in enumerate(data.user_ids)
  }


def test_histories_by_hand():
  data = make([[3, 1], [2]])
  assert (data.num_users, data.num_interactions) == (2, 3)
  np.testing.assert_array_equal(data.history(0), [3, 1])
  np.testing.assert_array_equal(data.user_index, [0, 0, 1])
  np.testing.assert_array_equal(data.lengths, [2, 1])


def test_events_are_grouped_and_sorted_with_ties_in_file_order():
  data = interactions_lib.from_events(
    ["b", "a", "b", "b"],
    np.array([0, 1, 2, 3], np.int32),
    np.array([5.0, 1.0, 2.0, 5.0]),
  )
  assert histories(data) == {"b": [2, 0, 3], "a": [1]}
  np.testing.assert_array_equal(data.times, [2, 5, 5, 1])
  assert data.absolute_times


def test_users_with_too_few_items_are_left_out():
  assert histories(make([[0], [1, 2], [3]]).at_least(2)) == {"u1": [1, 2]}


def slow_core(histories, k):
  """The k-core by its definition, one removal at a time."""
  rows = [(u, i) for u, items in histories.items() for i in items]
  while True:
    for axis in (0, 1):
      names = [row[axis] for row in rows]
      rare = next((n for n in names if names.count(n) < k), None)
      if rare is not None:
        rows = [row for row in rows if row[axis] != rare]
        break
    else:
      return rows


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_core_equals_its_definition(seed, k):
  rng = np.random.default_rng(seed)
  data = make([rng.permutation(12)[: rng.integers(1, 9)] for _ in range(14)])
  core, kept = data.k_core(k)
  found = [
    (user, int(kept[item]))
    for user, items in histories(core).items()
    for item in items
  ]
  assert found == slow_core(histories(data), k)
  assert np.all(np.bincount(core.items, minlength=kept.size) >= k)


@pytest.mark.parametrize("times", [None, [[0, 5], [1]]])
def test_arrays_round_trip(times):
  data = make([[3, 1], [2]], times)
  back = Interactions.from_arrays(data.to_arrays())
  assert histories(back) == histories(data)
  assert back.absolute_times == data.absolute_times
  if times is None:
    assert back.times is None
  else:
    np.testing.assert_array_equal(back.times, data.times)


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (
      lambda: make([[0], [1]], user_ids=("a", "a")),
      "User id 'a' appears twice",
    ),
    (
      lambda: make([[0, 1], [2, 3, 4]], [[9, 9], [1, 3, 2]]),
      r"backwards 1 times, first for user 'u1' between interactions 2 and 3",
    ),
    (
      lambda: make([[0, 1]], [[0, np.nan]]),
      r"1 times are not finite, the first is of user 'u0'",
    ),
    (lambda: make([[0, 1]], [[0]]), r"float64 times of shape \(2,\)"),
    (lambda: make([[0, -1]]), "Item index -1 is negative"),
    (
      lambda: make([[0, 7]]).check_items(7),
      "Item index 7 is outside the catalog of 7 items",
    ),
    (
      lambda: make([[0, 1]]).k_core(2),
      "No interaction of 2 survives min_interactions=2",
    ),
    (
      lambda: Interactions(("a",), np.zeros(2, np.int32), np.array([0, 1])),
      "must rise from 0 to 2",
    ),
    (
      lambda: Interactions(("a",), np.zeros(2, np.int64), np.array([0, 2])),
      "int32 items and int64 offsets; got int64",
    ),
  ],
)
def test_refusals(build, message):
  with pytest.raises(InputError, match=message):
    build()
