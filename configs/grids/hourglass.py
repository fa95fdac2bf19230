"""The middle level as it is, dropped, or without its fullest codes."""

from ml_collections import config_dict

from configs import grids

CELLS = {
  "as_is": {},
  "middle_dropped": {"hourglass": {"drop_level": 1}},
  "top_codes_removed": {
    "hourglass": {"remove_top_codes": 8, "remove_level": 1}
  },
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, hourglass=CELLS)
