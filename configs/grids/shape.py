"""Levels and codes a level; a last cell puts the capacity first."""

from ml_collections import config_dict

from configs import grids

# The cells of published claims come first.
_SIZES = ((256,) * 3, (256,) * 5, (128,) * 3, (512,) * 3)
_OTHERS = [
  (codes,) * levels for levels in (2, 4, 5, 3) for codes in (256, 128, 512)
]
CELLS = {
  f"{len(sizes)}x{sizes[0]}": {"tokenizer": {"codebook_sizes": sizes}}
  for sizes in (*_SIZES, *_OTHERS)
} | {
  "512-256-128-64": {"tokenizer": {"codebook_sizes": (512, 256, 128, 64)}},
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, shape=CELLS)
