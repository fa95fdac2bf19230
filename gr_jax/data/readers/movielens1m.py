"""MovieLens-1M: the raw files of GroupLens.

F. M. Harper, J. A. Konstan, "The MovieLens Datasets", TiiS 2015. Every rating
counts as an interaction, whatever its value.
"""

import dataclasses
import os

import numpy as np

from gr_jax.core.checks import InputError
from gr_jax.data import catalog as catalog_lib
from gr_jax.data import dataset as dataset_lib
from gr_jax.data import interactions as interactions_lib
from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset
from gr_jax.data.readers import lines

SOURCE = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"
CORE = 5
# Users, items, interactions: of all ratings, and of their 5-core.
PUBLISHED_COUNTS = (6_040, 3_706, 1_000_209)
PUBLISHED_CORE_COUNTS = (6_040, 3_416, 999_611)
_ENCODING = "latin-1"


@dataclasses.dataclass(frozen=True)
class MovieLens1MData:
  """The folder `ml-1m` with `ratings.dat` and `movies.dat`.

  Attributes:
    path: The folder.
    min_interactions: k of the k-core of users and items; 1 keeps every rated
      movie.
    check_published: Whether the counts must be the published ones, where
      there are some for this k.
  """

  path: str
  min_interactions: int = CORE
  check_published: bool = True

  def load(self) -> Dataset:
    """Reads the raw files.

    Raises:
      InputError: A file is missing or damaged, or the counts are not the
        published ones.
    """
    ratings, movies = lines.require_files(
      self.path, "ratings.dat", "movies.dat", source=SOURCE
    )
    data = read_raw(ratings, movies, min_interactions=self.min_interactions)
    if self.check_published:
      check_published(self.min_interactions, data)
    return data


def check_published(min_interactions: int, data: Dataset) -> None:
  """Refuses data whose size is not the published one, where there is one.

  Raises:
    InputError: Both numbers, of whatever differs.
  """
  published = {1: PUBLISHED_COUNTS, CORE: PUBLISHED_CORE_COUNTS}
  if min_interactions in published:
    dataset_lib.check_counts(
      f"MovieLens-1M with min_interactions={min_interactions}",
      data.counts,
      published[min_interactions],
    )


def read_raw(
  ratings: str | os.PathLike[str],
  movies: str | os.PathLike[str],
  *,
  min_interactions: int = CORE,
) -> Dataset:
  """Reads the raw files; users and movies stand in the order of their ids.

  Args:
    ratings: `user::movie::rating::seconds` lines.
    movies: `movie::title::genre|genre` lines, latin-1.
    min_interactions: k of the k-core of users and items.

  Raises:
    InputError: A malformed line, or a rated movie that is not listed.
  """
  titles: dict[int, tuple[str, str]] = {}
  for number, line in lines.read_lines(movies, encoding=_ENCODING):
    fields = line.strip().split("::")
    if len(fields) != 3 or not fields[0].isdecimal():
      raise InputError(
        f"Line {number} of {str(movies)!r} is not `movie::title::genres`; "
        "fetch the file again."
      )
    titles[int(fields[0])] = (fields[1], fields[2])
  rows = []
  for number, line in lines.read_lines(ratings, encoding=_ENCODING):
    try:
      user, movie, _, seconds = map(int, line.split("::"))
    except ValueError as error:
      raise InputError(
        f"Line {number} of {str(ratings)!r} is not "
        f"`user::movie::rating::seconds` ({error}); fetch the file again."
      ) from error
    rows.append((user, movie, seconds))
  if not rows:
    raise InputError(f"{str(ratings)!r} holds no ratings; fetch it again.")
  users, movie_ids, seconds = np.asarray(rows, np.int64).T
  order = np.argsort(users, kind="stable")
  rated, items = np.unique(movie_ids[order], return_inverse=True)
  interactions = interactions_lib.from_events(
    [str(user) for user in users[order].tolist()],
    items.astype(np.int32),
    seconds[order].astype(np.float64),
  )
  core, kept = interactions.k_core(min_interactions)
  return Dataset(_make_catalog(rated[kept].tolist(), titles), core)


def _make_catalog(
  movie_ids: list[int], titles: dict[int, tuple[str, str]]
) -> ItemCatalog:
  unlisted = [movie for movie in movie_ids if movie not in titles]
  if unlisted:
    raise InputError(
      f"{len(unlisted)} rated movies are not in movies.dat, the first is "
      f"{unlisted[0]}; fetch both files again."
    )
  rows = [titles[movie] for movie in movie_ids]
  genres = [genre.replace("|", ", ") for _, genre in rows]
  return ItemCatalog(
    item_ids=tuple(str(movie) for movie in movie_ids),
    texts=tuple(
      catalog_lib.item_text(title=title, categories=[[genre]])
      for (title, _), genre in zip(rows, genres, strict=True)
    ),
    titles=tuple(title for title, _ in rows),
    categories=tuple(genres),
  )
