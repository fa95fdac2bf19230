import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data import catalog
from gr_jax.data.catalog import ItemCatalog


def make(*ids, **fields):
  columns = {"texts": ids, "titles": ids, "categories": ("",) * len(ids)}
  return ItemCatalog(item_ids=ids, **(columns | fields))


def test_indices_by_hand():
  items = make("a", "b", "c")
  assert items.num_items == 3
  assert items.index_of("b") == 1
  np.testing.assert_array_equal(items.indices_of(["c", "a", "c"]), [2, 0, 2])
  assert items.take([2, 0]).item_ids == ("c", "a")


def test_append_keeps_every_index():
  grown = make("a", "b").append(make("c"))
  assert grown.item_ids == ("a", "b", "c")
  assert grown.texts == ("a", "b", "c")


def test_arrays_round_trip():
  items = make("a", "ü", titles=("", "Öl"), categories=("X > Y", ""))
  assert ItemCatalog.from_arrays(items.to_arrays()) == items


def test_text_joins_what_is_known():
  text = catalog.item_text(
    title="Shampoo ",
    brand="",
    categories=[["Beauty", "Hair"], ["Beauty", "Hair"], []],
    description="Mild.",
  )
  assert text == "Shampoo. Beauty > Hair. Mild."
  assert catalog.category_path([[], ["Beauty", "Hair"]]) == "Beauty > Hair"
  assert catalog.category_path([]) == ""


@pytest.mark.parametrize(
  ("build", "message"),
  [
    (lambda: make(), "catalog is empty"),
    (
      lambda: make("a", "b", "a"),
      r"Item id 'a' appears twice, as entries 1 and 3; 1 repeated",
    ),
    (lambda: make("a", ""), "Item 1 has an empty item id"),
    (
      lambda: make("a", "b", texts=("x", " ")),
      r"1 of 2 items have no text, the first is item 'b'",
    ),
    (lambda: make("a", titles=()), "differ in length"),
    (
      lambda: make("a", "b").indices_of(["a", "z", "y"]),
      r"2 item ids are not in the catalog of 2 items, the first is 'z'",
    ),
    (
      lambda: make("a", "b").append(make("c", "b")),
      r"1 of 2 new items are in the catalog of 2 already, the first is 'b'",
    ),
  ],
)
def test_refusals(build, message):
  with pytest.raises(InputError, match=message):
    build()
