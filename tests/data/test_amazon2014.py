import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data.readers import amazon2014
from gr_jax.data.readers.amazon2014 import Amazon2014Data
from tests.data import raw_files


def load(path, **settings):
  settings = {"min_interactions": 2} | settings
  return Amazon2014Data(str(path), **settings).load()


def test_raw_files_by_hand(tmp_path):
  data = load(raw_files.write_amazon(tmp_path))
  assert data.counts == raw_files.AMAZON_COUNTS
  assert data.catalog.item_ids == ("A1", "A2", "A3")
  assert data.catalog.titles == ("Soap & Co", "", "Mom's Cream")
  assert data.catalog.texts == (
    "Soap & Co. Soft.",
    "Beauty > Hair",
    "Mom's Cream. Acme. Beauty > Skin & Face",
  )
  assert data.catalog.categories == (
    "",
    "Beauty > Hair",
    "Beauty > Skin & Face",
  )
  assert data.interactions.user_ids == ("u2", "u1")
  # Oldest first; u2's A2 and A3 share a day and keep the file's order.
  np.testing.assert_array_equal(data.interactions.history(0), [0, 1, 2])
  np.testing.assert_array_equal(data.interactions.history(1), [0, 2, 1])
  np.testing.assert_array_equal(
    data.interactions.times / 86_400, [3, 5, 5, 1, 2, 2]
  )


def test_other_categories_have_no_published_counts(tmp_path):
  raw_files.write_amazon(tmp_path, "Musical_Instruments")
  data = load(tmp_path, category="Musical_Instruments")
  assert data.counts == raw_files.AMAZON_COUNTS


def test_published_counts_are_asserted(tmp_path, monkeypatch):
  path = raw_files.write_amazon(tmp_path)
  monkeypatch.setattr(amazon2014, "CORE", 2)
  monkeypatch.setattr(
    amazon2014,
    "file_names",
    lambda c: (f"reviews_{c}_5.json.gz", f"meta_{c}.json.gz"),
  )
  with pytest.raises(
    InputError,
    match=r"Amazon 2014 Beauty 2-core has 2 users \(published: 22,363\), "
    r"3 items \(published: 12,101\), 6 interactions \(published: 198,502\)",
  ):
    load(path)
  assert load(path, check_published=False).counts == raw_files.AMAZON_COUNTS


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"reviews": ["{"]}, "Line 1 of .*reviews_Beauty.* is no review with"),
    ({"reviews": ['{"asin": "A1"}']}, "is no review with .*reviewerID"),
    ({"reviews": []}, "holds no reviews"),
    (
      {"metadata": ["{'asin': 'A1' oops}"]},
      "Line 1 of .*meta_Beauty.* is no dictionary",
    ),
    ({"metadata": ["{'title': 'x'}"]}, "Line 1 of .*meta_Beauty.* no `asin`"),
    (
      {"metadata": raw_files.METADATA[:2]},
      "1 of 3 items have no text, the first is item 'A2'",
    ),
  ],
)
def test_damaged_files_are_refused(tmp_path, files, message):
  raw_files.write_amazon(tmp_path, **files)
  with pytest.raises(InputError, match=message):
    load(tmp_path)


def test_missing_files_are_refused(tmp_path):
  with pytest.raises(InputError, match="No folder '.*none'; set data.path"):
    load(tmp_path / "none")
  raw_files.write_amazon(tmp_path)
  with pytest.raises(
    InputError,
    match="lacks 'reviews_Toys_and_Games_5.json.gz'; fetch it from http",
  ):
    load(tmp_path, category="Toys_and_Games")
