"""ItemCatalog: which items there are and what is written about them."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Int64

from gr_jax.core import artifact
from gr_jax.core.checks import InputError

PATH_SEPARATOR = " > "
_FIELDS = ("item_ids", "texts", "titles", "categories")


@dataclasses.dataclass(frozen=True)
class ItemCatalog:
  """The items in order: position n in every tuple is item index n.

  Raises:
    InputError: The tuples differ in length, an item id is empty or appears
      twice, or an item has no text.
  """

  item_ids: tuple[str, ...]
  texts: tuple[str, ...]  # all that an embedder reads about an item
  titles: tuple[str, ...]  # what a person reads; "" where unknown
  categories: tuple[str, ...]  # "Beauty > Makeup > Nails"; "" where unknown

  def __post_init__(self):
    """Refuses a catalog that no later stage could use."""
    sizes = {name: len(getattr(self, name)) for name in _FIELDS}
    if len(set(sizes.values())) != 1:
      raise InputError(f"Catalog fields differ in length: {sizes}.")
    if not self.item_ids:
      raise InputError("The catalog is empty; it needs at least one item.")
    check_unique("item id", self.item_ids)
    if "" in self._index:
      raise InputError(
        f"Item {self._index['']} has an empty item id; give every item one."
      )
    bare = [i for i, text in enumerate(self.texts) if not text.strip()]
    if bare:
      raise InputError(
        f"{len(bare)} of {len(self.item_ids)} items have no text, the first "
        f"is item {self.item_ids[bare[0]]!r}; give it a title or drop it."
      )

  @property
  def num_items(self) -> int:
    """N."""
    return len(self.item_ids)

  @functools.cached_property
  def _index(self) -> dict[str, int]:
    return {item_id: n for n, item_id in enumerate(self.item_ids)}

  def index_of(self, item_id: str) -> int:
    """Returns the item index of `item_id`.

    Raises:
      InputError: The catalog has no such item.
    """
    return int(self.indices_of([item_id])[0])

  def indices_of(self, item_ids: Iterable[str]) -> Int64[np.ndarray, "n"]:
    """Returns the item index of every id, in the order given.

    Raises:
      InputError: The catalog lacks some of them.
    """
    wanted = list(item_ids)
    found = [self._index.get(item_id, -1) for item_id in wanted]
    indices = np.asarray(found, np.int64)
    missing = np.flatnonzero(indices < 0)
    if missing.size:
      raise InputError(
        f"{missing.size} item ids are not in the catalog of "
        f"{self.num_items} items, the first is {wanted[missing[0]]!r}; add "
        f"it to the items or remove it. Ids look like {self.item_ids[0]!r}."
      )
    return indices

  def take(self, indices: Sequence[int] | np.ndarray) -> "ItemCatalog":
    """Returns the catalog of the given items alone, in the order given."""
    kept = np.asarray(indices, np.int64).tolist()
    return ItemCatalog(
      **{f: tuple(getattr(self, f)[n] for n in kept) for f in _FIELDS}
    )

  def append(self, new: "ItemCatalog") -> "ItemCatalog":
    """Returns this catalog with new items after it; no index changes.

    Raises:
      InputError: An item of `new` is here already.
    """
    known = [item_id for item_id in new.item_ids if item_id in self._index]
    if known:
      raise InputError(
        f"{len(known)} of {new.num_items} new items are in the catalog of "
        f"{self.num_items} already, the first is {known[0]!r}; append only "
        "items with new ids."
      )
    return ItemCatalog(
      **{f: getattr(self, f) + getattr(new, f) for f in _FIELDS}
    )

  def to_arrays(self) -> dict[str, np.ndarray]:
    """Returns the catalog as numeric arrays for an artifact."""
    arrays = {}
    for name in _FIELDS:
      packed = artifact.pack_strings(getattr(self, name))
      arrays.update(artifact.prefixed(packed, name))
    return arrays

  @classmethod
  def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ItemCatalog":
    """Returns the catalog that `to_arrays` wrote."""
    return cls(
      **{
        name: artifact.unpack_strings(artifact.group(arrays, name))
        for name in _FIELDS
      }
    )


def check_unique(what: str, names: Sequence[str]) -> None:
  """Refuses a name that appears twice, naming it and both places.

  Args:
    what: What is being named, e.g. "item id".
    names: The names.

  Raises:
    InputError: Some name appears twice.
  """
  if len(set(names)) == len(names):
    return
  first: dict[str, int] = {}
  for position, name in enumerate(names):
    if name in first:
      raise InputError(
        f"{what.capitalize()} {name!r} appears twice, as entries "
        f"{first[name] + 1} and {position + 1}; {len(names) - len(set(names))} "
        "repeated in all. Remove the repetitions."
      )
    first[name] = position


def item_text(
  *,
  title: str = "",
  brand: str = "",
  categories: Sequence[Sequence[str]] = (),
  keywords: str = "",
  description: str = "",
) -> str:
  """Joins what is known about an item into the text that embedders read.

  Args:
    title: Its title.
    brand: Its brand or maker.
    categories: Its category paths, coarsest name first; repeated ones count
      once.
    keywords: Key phrases.
    description: Running text.

  Returns:
    The parts that are not empty, in this order, joined by ". ".
  """
  paths = dict.fromkeys(PATH_SEPARATOR.join(path) for path in categories)
  parts = (title, brand, *paths, keywords, description)
  return ". ".join(part.strip() for part in parts if part and part.strip())


def category_path(categories: Sequence[Sequence[str]]) -> str:
  """Returns an item's first category path that is not empty, readable."""
  for path in categories:
    if path:
      return PATH_SEPARATOR.join(path)
  return ""
