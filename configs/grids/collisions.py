"""What becomes of items that share their codes."""

from ml_collections import config_dict

from configs import grids

CELLS = {
  policy: {"collisions": {"name": policy}}
  for policy in (
    "extra_level",
    "random_item",
    "none",
    "knn",
    "random_last_level",
    "sinkhorn",
    "sparse_id",
  )
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, collisions=CELLS)
