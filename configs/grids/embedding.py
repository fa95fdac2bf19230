"""What the semantic IDs are made from."""

from ml_collections import config_dict

from configs import grids

CELLS = {
  "given": {"embedding": {"name": "precomputed"}},
  "given_and_co_occurrence": {"embedding": {"name": "text_and_co_occurrence"}},
  "tfidf_svd_256": {"embedding": {"name": "tfidf_svd", "dim": 256}},
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, embedding=CELLS)
