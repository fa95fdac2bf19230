"""Beam widths, with the catalog's trie and without it."""

from ml_collections import config_dict

from configs import grids

CELLS = {
  f"{name}_beam_{width}": {
    "decoding": {"constrained": constrained, "beam_width": width}
  }
  for name, constrained in (("constrained", True), ("free", False))
  for width in (50, 20, 100, 500)
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, decoding=CELLS)
