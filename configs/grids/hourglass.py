"""The middle level as it is, dropped, or without its fullest codes."""

from ml_collections import config_dict

from configs import grids

_CHANGES = {
  "as_is": {},
  "middle_dropped": {"drop_level": 1},
  "top_codes_removed": {"remove_top_codes": 8, "remove_level": 1},
}


def cells(arg: str) -> grids.Cells:
  """Returns the cells; `arg` as of `grids.base`."""
  # Without its fullest codes a level leaves IDs of unequal length.
  return {
    name: grids.of_tokens(arg, hourglass=change)
    for name, change in _CHANGES.items()
  }


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, hourglass=cells(arg))
