"""Small fake raw files in the formats of the public data sets."""

import gzip
import json

# user -> [(item, day)]; u9 and A9 fall out of the 2-core.
REVIEWS = {
  "u2": [("A2", 5), ("A1", 3), ("A3", 5)],
  "u1": [("A1", 1), ("A3", 2), ("A2", 2), ("A9", 9)],
  "u9": [("A1", 1)],
}
METADATA = (
  "{'asin': 'A3', 'title': \"Mom's Cream\", 'brand': 'Acme',"
  " 'categories': [['Beauty', 'Skin &amp; Face']]}",
  "{'asin': 'A1', 'title': 'Soap &amp; Co', 'price': 3.5,"
  " 'description': 'Soft.'}",
  '{"asin": "A2", "title": null, "categories": [["Beauty", "Hair"]]}',
  "{'asin': 'A9', 'title': 'Rare'}",
  "{'asin': 'ZZ' this line is broken but of no reviewed item}",
)
# Users, items, interactions of the 2-core, which is a 3-core too.
AMAZON_COUNTS = (2, 3, 6)


def write_amazon(path, category="Beauty", reviews=None, metadata=METADATA):
  path.mkdir(parents=True, exist_ok=True)
  if reviews is None:
    reviews = [
      json.dumps(
        {"reviewerID": user, "asin": item, "unixReviewTime": day * 86_400}
      )
      for user, rows in REVIEWS.items()
      for item, day in rows
    ]
  for name, lines in (
    (f"reviews_{category}_5.json.gz", reviews),
    (f"meta_{category}.json.gz", metadata),
  ):
    text = "".join(line + "\n" for line in lines)
    (path / name).write_bytes(gzip.compress(text.encode()))
  return path


RATINGS = (
  "2::10::5::300",
  "1::20::3::200",
  "1::10::4::100",
  "2::20::1::400",
  "2::30::1::300",
  "1::30::5::300",
  "3::40::5::300",
)
MOVIES = (
  "10::Toy Story (1995)::Animation|Comedy",
  "20::Misérables, Les (1995)::Drama",
  "30::Heat (1995)::Action",
  "40::Rare (1990)::Drama",
)
MOVIELENS_COUNTS = (2, 3, 6)  # of the 2-core


def write_movielens(path, ratings=RATINGS, movies=MOVIES):
  path.mkdir(parents=True, exist_ok=True)
  for name, lines in (("ratings.dat", ratings), ("movies.dat", movies)):
    text = "".join(line + "\n" for line in lines)
    (path / name).write_text(text, encoding="latin-1")
  return path
