"""Interactions: who chose what and when, users back to back, oldest first."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int32, Int64

from gr_jax.core import artifact
from gr_jax.core.checks import InputError
from gr_jax.data import catalog as catalog_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
  """Every user's items in one flat array.

  User u's history is `items[offsets[u]:offsets[u + 1]]`.

  Raises:
    InputError: Arrays that do not fit together, a user that appears twice,
      times that are not finite or run backwards within a user.
  """

  user_ids: tuple[str, ...]
  items: np.ndarray  # int32 [T], item indices
  offsets: np.ndarray  # int64 [U + 1]
  times: np.ndarray | None = None  # float64 [T], seconds
  # True: times of different users compare. False: only those of one user do.
  absolute_times: bool = False

  def __post_init__(self):
    """Refuses arrays that contradict each other."""
    if self.items.dtype != np.int32 or self.offsets.dtype != np.int64:
      raise InputError(
        f"Need int32 items and int64 offsets; got {self.items.dtype} and "
        f"{self.offsets.dtype}."
      )
    if (
      self.offsets.shape != (self.num_users + 1,)
      or self.offsets[0] != 0
      or self.offsets[-1] != self.items.size
      or np.any(np.diff(self.offsets) < 0)
    ):
      raise InputError(
        f"Offsets of {self.num_users} users must rise from 0 to "
        f"{self.items.size}, one more than users; got shape "
        f"{self.offsets.shape}."
      )
    if self.items.size and self.items.min() < 0:
      raise InputError(f"Item index {self.items.min()} is negative.")
    catalog_lib.check_unique("user id", self.user_ids)
    if self.times is not None:
      self._check_times(self.times)

  def _check_times(self, times: np.ndarray) -> None:
    if times.shape != self.items.shape or times.dtype != np.float64:
      raise InputError(
        f"Need float64 times of shape {self.items.shape}; got {times.dtype} "
        f"{times.shape}."
      )
    bad = np.flatnonzero(~np.isfinite(times))
    if bad.size:
      raise InputError(
        f"{bad.size} times are not finite, the first is of user "
        f"{self.user_ids[self.user_index[bad[0]]]!r}; mend or drop them."
      )
    user_index = self.user_index
    same_user = user_index[1:] == user_index[:-1]
    back = np.flatnonzero(same_user & (np.diff(times) < 0))
    if back.size:
      user = user_index[back[0]]
      raise InputError(
        f"Times run backwards {back.size} times, first for user "
        f"{self.user_ids[user]!r} between interactions "
        f"{back[0] - self.offsets[user] + 1} and "
        f"{back[0] - self.offsets[user] + 2}; sort every user's items oldest "
        "first."
      )

  @property
  def num_users(self) -> int:
    """U."""
    return len(self.user_ids)

  @property
  def num_interactions(self) -> int:
    """T."""
    return int(self.items.size)

  @property
  def lengths(self) -> Int64[np.ndarray, "U"]:
    """How many interactions every user has."""
    return np.diff(self.offsets)

  @property
  def user_index(self) -> Int64[np.ndarray, "T"]:
    """Which user every interaction belongs to."""
    return np.repeat(np.arange(self.num_users, dtype=np.int64), self.lengths)

  def history(self, user: int) -> Int32[np.ndarray, "n"]:
    """Returns the items of the user with this index, oldest first."""
    return self.items[self.offsets[user] : self.offsets[user + 1]]

  def check_items(self, num_items: int) -> None:
    """Refuses item indices outside a catalog of `num_items`."""
    if self.items.size and self.items.max() >= num_items:
      raise InputError(
        f"Item index {self.items.max()} is outside the catalog of "
        f"{num_items} items."
      )

  def select(self, keep: np.ndarray) -> "Interactions":
    """Returns the interactions where `keep` holds; emptied users go too.

    Args:
      keep: bool [T].
    """
    lengths = np.bincount(self.user_index[keep], minlength=self.num_users)
    users = np.flatnonzero(lengths)
    return Interactions(
      user_ids=tuple(self.user_ids[u] for u in users.tolist()),
      items=self.items[keep],
      offsets=offsets_from_lengths(lengths[users]),
      times=None if self.times is None else self.times[keep],
      absolute_times=self.absolute_times,
    )

  def at_least(self, min_interactions: int) -> "Interactions":
    """Returns the users with at least `min_interactions`; items stay."""
    return self.select((self.lengths >= min_interactions)[self.user_index])

  def k_core(
    self, min_interactions: int
  ) -> tuple["Interactions", Int64[np.ndarray, "kept"]]:
    """Drops rare users and items until none is left, then renumbers items.

    Args:
      min_interactions: Fewest interactions that a user or item keeps.

    Returns:
      The interactions over the kept items numbered 0.., and the kept items'
      old indices in ascending order (for `ItemCatalog.take`).

    Raises:
      InputError: Nothing is left.
    """
    user, item = self.user_index, self.items
    keep = np.ones(item.size, bool)
    while True:
      users = np.bincount(user[keep], minlength=self.num_users)
      items = np.bincount(item[keep], minlength=int(item.max(initial=0)) + 1)
      enough = (users[user] >= min_interactions) & (
        items[item] >= min_interactions
      )
      if np.array_equal(enough & keep, keep):
        break
      keep &= enough
    if not keep.any():
      raise InputError(
        f"No interaction of {item.size} survives min_interactions="
        f"{min_interactions}; lower it."
      )
    kept_items, renumbered = np.unique(item[keep], return_inverse=True)
    selected = self.select(keep)
    core = dataclasses.replace(selected, items=renumbered.astype(np.int32))
    return core, kept_items.astype(np.int64)

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns the interactions as numeric arrays for an artifact."""
    arrays = {
      "items": self.items,
      "offsets": self.offsets,
      "absolute_times": np.asarray([self.absolute_times]),
      **artifact.prefixed(artifact.pack_strings(self.user_ids), "user_ids"),
    }
    if self.times is not None:
      arrays["times"] = self.times
    return arrays

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Interactions":
    """Returns the interactions that `to_arrays` wrote."""
    return cls(
      user_ids=artifact.unpack_strings(artifact.group(arrays, "user_ids")),
      items=arrays["items"],
      offsets=arrays["offsets"],
      times=arrays.get("times"),
      absolute_times=bool(arrays["absolute_times"][0]),
    )


def offsets_from_lengths(lengths: np.ndarray) -> Int64[np.ndarray, "n"]:
  """Returns int64 [U + 1] starting at 0 from the users' lengths [U]."""
  offsets = np.zeros(len(lengths) + 1, np.int64)
  np.cumsum(lengths, out=offsets[1:])
  return offsets


def from_events(
  user_ids: Sequence[str],
  items: Int32[np.ndarray, "T"],
  times: Float64[np.ndarray, "T"],
) -> Interactions:
  """Groups events in any order by user and sorts each user's by time.

  Users stand in the order in which they first appear; events of one user at
  one time keep the order given.

  Args:
    user_ids: Who, one an event.
    items: Which item index.
    times: When, in seconds since a moment common to all users.

  Returns:
    The interactions, with absolute times.
  """
  number: dict[str, int] = {}
  users = np.asarray(
    [number.setdefault(user, len(number)) for user in user_ids], np.int64
  )
  order = np.lexsort((times, users))  # lexsort is stable
  return Interactions(
    user_ids=tuple(number),
    items=items[order],
    offsets=offsets_from_lengths(np.bincount(users, minlength=len(number))),
    times=times[order],
    absolute_times=True,
  )
