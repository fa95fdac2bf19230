"""Which interactions train, validate and test; nothing here shuffles."""

import dataclasses

import numpy as np
from jaxtyping import Bool

from gr_jax.core.checks import InputError
from gr_jax.data.interactions import Interactions

_DAY_SECONDS = 86_400


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
  """Histories and what followed them, as positions in `Interactions.items`.

  Example m asks for `items[target_position[m]]` given
  `items[history_start[m]:target_position[m]]`.
  """

  user_index: np.ndarray  # int32 [M]
  history_start: np.ndarray  # int32 [M]
  target_position: np.ndarray  # int32 [M]

  @property
  def num_examples(self) -> int:
    """M."""
    return int(self.user_index.size)

  def take(self, indices: np.ndarray) -> "Examples":
    """Returns the examples at `indices`, or where a mask holds."""
    return Examples(
      self.user_index[indices],
      self.history_start[indices],
      self.target_position[indices],
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
  """The training part of every user, and the examples held out.

  User u trains on `items[offsets[u]:train_end[u]]` and nothing else; the
  history of a held-out example may reach beyond that.
  """

  train_end: np.ndarray  # int64 [U]
  validation: Examples
  test: Examples


def _examples(interactions: Interactions, targets: np.ndarray) -> Examples:
  """Examples with everything before each target position as history."""
  users = np.searchsorted(interactions.offsets, targets, side="right") - 1
  return Examples(
    user_index=users.astype(np.int32),
    history_start=interactions.offsets[users].astype(np.int32),
    target_position=targets.astype(np.int32),
  )


def _check_size(interactions: Interactions) -> None:
  if interactions.num_interactions > np.iinfo(np.int32).max:
    raise InputError(
      f"{interactions.num_interactions} interactions exceed int32 positions; "
      "split the users over several data sets."
    )


def leave_one_out(interactions: Interactions) -> Split:
  """Holds out every user's last item for test and the one before it.

  The last but one validates; the test history includes it. All users are
  tested (the protocol of SASRec, TIGER and their successors).

  Args:
    interactions: Users with at least three interactions each.

  Raises:
    InputError: A user has fewer than three.
  """
  _check_size(interactions)
  short = np.flatnonzero(interactions.lengths < 3)
  if short.size:
    user = int(short[0])
    raise InputError(
      f"{short.size} of {interactions.num_users} users have fewer than 3 "
      f"items, the first is user {interactions.user_ids[user]!r} with "
      f"{int(interactions.lengths[user])}; leave-one-out needs one each for "
      "training, validation and test. Drop such users, for example with "
      "min_user_interactions=3."
    )
  ends = interactions.offsets[1:]
  return Split(
    train_end=ends - 2,
    validation=_examples(interactions, ends - 2),
    test=_examples(interactions, ends - 1),
  )


def global_time_split(
  interactions: Interactions,
  *,
  validation_share: float = 0.1,
  test_share: float = 0.1,
) -> Split:
  """Splits at two moments common to all users: no look into the future.

  Training ends for everyone at the moment before which a share of
  1 - validation_share - test_share of all interactions happened. A user's
  first interaction with a history in each later period is that period's
  example; the history is all that the user did before, in the period too.

  Args:
    interactions: With absolute times.
    validation_share: Share of all interactions in the validation period.
    test_share: Share of all interactions in the test period.

  Raises:
    InputError: No absolute times, shares that leave nothing to train on, or
      a period without examples.
  """
  _check_size(interactions)
  times = interactions.times
  if times is None or not interactions.absolute_times:
    raise InputError(
      "A split by time needs times that compare across users; this data has "
      f"{'only gaps within a user' if times is not None else 'none'}. Use "
      "leave-one-out, or data with a `times` column."
    )
  train_share = 1.0 - validation_share - test_share
  if min(validation_share, test_share, train_share) <= 0:
    raise InputError(
      f"Need positive shares below 1 in sum; got {validation_share=}, "
      f"{test_share=}."
    )
  shares = np.asarray([train_share, 1 - test_share])
  ranks = np.minimum(np.round(shares * times.size), times.size - 1)
  # Times that occur: interactions of one moment fall on one side.
  starts = np.sort(times)[ranks.astype(np.int64)]
  user_index = interactions.user_index
  has_history = np.ones(times.size, bool)
  has_history[interactions.offsets[:-1][interactions.lengths > 0]] = False
  held_out = []
  for name, share, low, high in (
    ("validation", validation_share, starts[0], starts[1]),
    ("test", test_share, starts[1], np.inf),
  ):
    inside = np.flatnonzero((times >= low) & (times < high) & has_history)
    if not inside.size:
      raise InputError(
        f"No user with a history has an interaction in the {name} period; "
        f"raise {name}_share={share}."
      )
    _, first = np.unique(user_index[inside], return_index=True)
    held_out.append(_examples(interactions, inside[first]))
  before = np.bincount(
    user_index[times < starts[0]], minlength=interactions.num_users
  )
  return Split(interactions.offsets[:-1] + before, *held_out)


def cold_start_split(
  interactions: Interactions, cold_items: Bool[np.ndarray, "N"]
) -> Split:
  """Leave-one-out in which the cold items are never trained on.

  A user's training part ends before the first cold item, and every
  interaction with a cold item that has a history is a test example.
  Validation keeps the leave-one-out targets that are not cold.

  Args:
    interactions: Users with at least three interactions each.
    cold_items: True for items that count as new.

  Raises:
    InputError: A user with fewer than three items; no cold interaction.
  """
  split = leave_one_out(interactions)
  cold = np.flatnonzero(cold_items[interactions.items])
  if not cold.size:
    raise InputError(
      f"None of the {int(cold_items.sum())} cold items was ever chosen; hold "
      "out others."
    )
  users, first = np.unique(
    interactions.user_index[cold], return_index=True
  )  # first cold position of every user who has one
  train_end = split.train_end.copy()
  train_end[users] = np.minimum(train_end[users], cold[first])
  warm = ~cold_items[interactions.items[split.validation.target_position]]
  test = _examples(interactions, cold)
  return Split(
    train_end=train_end,
    validation=split.validation.take(warm),
    test=test.take(test.target_position > test.history_start),
  )


def later_day(
  interactions: Interactions, examples: Examples
) -> Bool[np.ndarray, "M"] | None:
  """Tells examples whose target fell on a later day than the item before.

  Where times are dates, the order within a day is an artefact of the file;
  figures on later days alone do not profit from it.

  Args:
    interactions: The data; days count from its time 0.
    examples: Of that data, each with a history.

  Returns:
    bool [M], or None where the data has no times.
  """
  if interactions.times is None:
    return None
  days = np.floor(interactions.times / _DAY_SECONDS)
  target = examples.target_position
  return days[target] > days[target - 1]
