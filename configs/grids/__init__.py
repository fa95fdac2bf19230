"""The handbook's grids: what each cell changes in the base settings.

A cell is a nested mapping of sections. One that names a component replaces
the whole section; any other changes the keys it gives.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from configs import common, quickstart

Cells = Mapping[str, Mapping[str, Any]]


def base(arg: str) -> config_dict.ConfigDict:
  """Returns what all cells share.

  Args:
    arg: "" for an accelerator, "cpu" for two CPU cores, "smoke" for synthetic
      data and seconds a cell.
  """
  if arg == "smoke":
    return quickstart.get_config("smoke")
  return common.amazon2014(arg)


def handbook(arg: str, **grids: Cells) -> config_dict.ConfigDict:
  """Returns the settings of a handbook of these grids, in this order."""
  c = base(arg)
  c.grids = {name: dict(cells) for name, cells in grids.items()}
  c.grid_order = tuple(grids)  # a ConfigDict sorts its keys
  return c
