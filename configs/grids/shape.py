"""Levels and codes a level; a last cell puts the capacity first."""

from ml_collections import config_dict

from configs import grids

CELLS = {
  f"{levels}x{codes}": {"tokenizer": {"codebook_sizes": (codes,) * levels}}
  for levels in (3, 2, 4, 5)
  for codes in (256, 128, 512)
} | {
  "512-256-128-64": {"tokenizer": {"codebook_sizes": (512, 256, 128, 64)}},
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, shape=CELLS)
