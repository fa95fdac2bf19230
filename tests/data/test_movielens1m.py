import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.data.readers.movielens1m import MovieLens1MData
from tests.data import raw_files


def load(path, **settings):
  settings = {"min_interactions": 2} | settings
  return MovieLens1MData(str(path), **settings).load()


def test_raw_files_by_hand(tmp_path):
  data = load(raw_files.write_movielens(tmp_path))
  assert data.counts == raw_files.MOVIELENS_COUNTS
  assert data.catalog.item_ids == ("10", "20", "30")
  assert data.catalog.titles[1] == "Misérables, Les (1995)"
  assert data.catalog.categories[0] == "Animation, Comedy"
  assert data.catalog.texts[0] == "Toy Story (1995). Animation, Comedy"
  assert data.interactions.user_ids == ("1", "2")
  np.testing.assert_array_equal(data.interactions.history(0), [0, 1, 2])
  # Movies 10 and 30 share a second and keep the file's order.
  np.testing.assert_array_equal(data.interactions.history(1), [0, 2, 1])


@pytest.mark.parametrize(
  ("k", "message"),
  [
    (1, r"3 users \(published: 6,040\), 4 items \(published: 3,706\), 7 int"),
    (2, None),
  ],
)
def test_published_counts_are_asserted(tmp_path, k, message):
  path = raw_files.write_movielens(tmp_path)
  if message is None:
    assert load(path, min_interactions=k).counts
    return
  with pytest.raises(InputError, match=message):
    load(path, min_interactions=k)
  assert load(path, min_interactions=k, check_published=False).counts


@pytest.mark.parametrize(
  ("files", "message"),
  [
    ({"ratings": ["1::2::3"]}, "Line 1 of .*ratings.dat' is not `user::"),
    ({"ratings": ["1::2::3::x"]}, "Line 1 of .*ratings.dat' is not `user::"),
    ({"ratings": []}, "holds no ratings"),
    ({"movies": ["10::Heat"]}, "Line 1 of .*movies.dat' is not `movie::"),
    (
      {"movies": raw_files.MOVIES[1:]},
      "1 rated movies are not in movies.dat, the first is 10",
    ),
  ],
)
def test_damaged_files_are_refused(tmp_path, files, message):
  raw_files.write_movielens(tmp_path, **files)
  with pytest.raises(InputError, match=message):
    load(tmp_path)


def test_missing_files_are_refused(tmp_path):
  with pytest.raises(InputError, match="lacks 'ratings.dat'; fetch it from"):
    load(tmp_path)
