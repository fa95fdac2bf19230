"""Amazon product data 2014: raw review and metadata files of one category.

R. He, J. McAuley, "Ups and Downs", WWW 2016; J. McAuley et al., "Image-based
Recommendations on Styles and Substitutes", SIGIR 2015. For research, with
citation. The review files named `_5` are 5-core already.
"""

import ast
import dataclasses
import html
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gr_jax.core.checks import InputError
from gr_jax.data import catalog as catalog_lib
from gr_jax.data import dataset as dataset_lib
from gr_jax.data import interactions as interactions_lib
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.data.readers import lines

SOURCE = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles/"
CORE = 5
# Users, items, interactions of the 5-core as every paper states them.
PUBLISHED_COUNTS: Mapping[str, tuple[int, int, int]] = {
  "Beauty": (22_363, 12_101, 198_502),
  "Sports_and_Outdoors": (35_598, 18_357, 296_337),
  "Toys_and_Games": (19_412, 11_924, 167_597),
}
_ASIN = re.compile(r"""['"]asin['"]\s*:\s*['"]([^'"]+)['"]""")


@dataclasses.dataclass(frozen=True)
class Amazon2014Data:
  """A folder with the two raw files of a category.

  Attributes:
    path: Folder with `reviews_<category>_5.json.gz` and
      `meta_<category>.json.gz`.
    category: As in the file names, e.g. "Beauty".
    min_interactions: k of the k-core of users and items.
    check_published: Whether the 5-core of a known category must have the
      counts published for it.
  """

  path: str
  category: str = "Beauty"
  min_interactions: int = CORE
  check_published: bool = True

  def load(self) -> Dataset:
    """Reads the raw files.

    Raises:
      InputError: A file is missing or damaged, or the counts are not the
        published ones.
    """
    reviews, metadata = lines.require_files(
      self.path, *file_names(self.category), source=SOURCE
    )
    data = read_raw(reviews, metadata, min_interactions=self.min_interactions)
    if self.check_published and self.min_interactions == CORE:
      check_published(self.category, data)
    return data


def file_names(category: str) -> tuple[str, str]:
  """Returns the names of a category's review and metadata file."""
  return f"reviews_{category}_{CORE}.json.gz", f"meta_{category}.json.gz"


def check_published(category: str, data: Dataset) -> None:
  """Refuses a 5-core whose size is not the published one, where there is one.

  Raises:
    InputError: Both numbers, of whatever differs.
  """
  if category in PUBLISHED_COUNTS:
    dataset_lib.check_counts(
      f"Amazon 2014 {category} {CORE}-core",
      data.counts,
      PUBLISHED_COUNTS[category],
    )


def read_raw(
  reviews: str | os.PathLike[str],
  metadata: str | os.PathLike[str],
  *,
  min_interactions: int = CORE,
) -> Dataset:
  """Reads a category's raw files.

  Users stand in the order of their first review in the file, items in that of
  their ASINs; reviews of one day keep the file's order.

  Args:
    reviews: One JSON object a line: reviewerID, asin, unixReviewTime.
    metadata: One Python or JSON dictionary a line: asin, title, brand,
      categories, description.
    min_interactions: k of the k-core of users and items.

  Raises:
    InputError: A malformed line, or a kept item without any text.
  """
  users, asins, times = [], [], []
  for number, line in lines.read_lines(reviews):
    try:
      record = json.loads(line)
      row = (
        str(record["reviewerID"]),
        str(record["asin"]),
        float(record["unixReviewTime"]),
      )
    except (ValueError, KeyError, TypeError) as error:
      raise InputError(
        f"Line {number} of {str(reviews)!r} is no review with reviewerID, "
        f"asin and unixReviewTime ({type(error).__name__}: {error}); fetch "
        "the file again."
      ) from error
    users.append(row[0])
    asins.append(row[1])
    times.append(row[2])
  if not users:
    raise InputError(f"{str(reviews)!r} holds no reviews; fetch it again.")
  names, items = np.unique(np.asarray(asins), return_inverse=True)
  interactions = interactions_lib.from_events(
    users, items.astype(np.int32), np.asarray(times, np.float64)
  )
  core, kept = interactions.k_core(min_interactions)
  return Dataset(_read_catalog(metadata, names[kept].tolist()), core)


def _read_catalog(
  metadata: str | os.PathLike[str], asins: list[str]
) -> ItemCatalog:
  """Returns the catalog of these items; unknown ones fail for lack of text."""
  wanted = set(asins)
  found: dict[str, dict[str, Any]] = {}
  for number, line in lines.read_lines(metadata):
    # Parsing a dictionary is slow and most items belong to no review.
    name = _ASIN.search(line)
    if name is None or name[1] in wanted:
      record = _parse_record(line, pathlib.Path(metadata), number)
      found[record["asin"]] = record
  rows = [_item_fields(found.get(asin, {})) for asin in asins]
  texts, titles, paths = zip(*rows, strict=True)
  return ItemCatalog(tuple(asins), texts, titles, paths)


def _parse_record(line: str, file: pathlib.Path, number: int) -> dict[str, Any]:
  try:
    # The published files hold Python literals, which JSON cannot read.
    record = ast.literal_eval(line.strip())
  except (ValueError, SyntaxError) as error:
    try:
      record = json.loads(line)
    except ValueError:
      raise InputError(
        f"Line {number} of {str(file)!r} is no dictionary ({error}); fetch "
        "the file again."
      ) from error
  if not isinstance(record, dict) or "asin" not in record:
    raise InputError(
      f"Line {number} of {str(file)!r} has no `asin`; fetch the file again."
    )
  return record


def _item_fields(record: Mapping[str, Any]) -> tuple[str, str, str]:
  """Returns an item's text, title and category path."""
  title, brand, description = (
    html.unescape(record.get(name) or "").strip()
    for name in ("title", "brand", "description")
  )
  categories = [
    [html.unescape(part) for part in path]
    for path in record.get("categories") or []
  ]
  text = catalog_lib.item_text(
    title=title, brand=brand, categories=categories, description=description
  )
  return text, title, catalog_lib.category_path(categories)
