"""Dataset: what every reader returns."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

from gr_jax.core.checks import InputError
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.interactions import Interactions


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """A catalog, who chose what from it, and vectors that came with it."""

  catalog: ItemCatalog
  interactions: Interactions
  # Name -> path of a .npy file whose row n is item n of the catalog.
  embeddings: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Refuses interactions with items outside the catalog."""
    self.interactions.check_items(self.catalog.num_items)

  @property
  def counts(self) -> tuple[int, int, int]:
    """Users, items, interactions."""
    return (
      self.interactions.num_users,
      self.catalog.num_items,
      self.interactions.num_interactions,
    )


class DatasetConfig(Protocol):
  """A reader: a frozen dataclass of settings that can load its data."""

  def load(self) -> Dataset:
    """Reads or makes the data."""
    ...


def check_counts(
  name: str, found: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
  """Refuses data whose size is not the one published for it.

  Args:
    name: The data set, for the message.
    found: Users, items, interactions as read.
    expected: The same as published.

  Raises:
    InputError: They differ.
  """
  if tuple(found) == tuple(expected):
    return
  kinds = ("users", "items", "interactions")
  wrong = ", ".join(
    f"{got:,} {kind} (published: {want:,})"
    for kind, got, want in zip(kinds, found, expected, strict=True)
    if got != want
  )
  raise InputError(
    f"{name} has {wrong}; the files are damaged, of another version or "
    "filtered otherwise. Fetch them again, or correct expected_counts."
  )
