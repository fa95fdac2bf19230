"""The handbook's grids: what each cell changes in the base settings.

A cell is a nested mapping of sections. One that names a component replaces
the whole section; any other changes the keys it gives. "retrieval" in a cell
compares ways to retrieve, see `RetrievalOptions`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from configs import common, quickstart, sasrec

# Cell -> section -> changes.
Cells = Mapping[str, Mapping[str, Any]]
_BY_GRADIENT = ("rq_vae", "rvq", "fsq", "opmq")


def base(arg: str) -> config_dict.ConfigDict:
  """Returns what all cells share.

  Args:
    arg: "" for an accelerator, "short" for a quarter of its steps, "cpu" for
      two CPU cores, "smoke" for synthetic data and seconds a cell.
  """
  if arg == "smoke":
    return quickstart.get_config("smoke")
  if arg != "short":
    return common.amazon2014(arg)
  c = common.amazon2014("")
  c.training.update(num_steps=2_000, eval_every_steps=500, patience=0)
  c.optimizer.warmup_steps = 200
  c.evaluation.batch_size = 1_024
  return c


def of_tokens(arg: str, **changes: Any) -> dict[str, Any]:
  """Returns changes to an encoder-decoder that reads and writes tokens.

  What it takes and networks of items do not (user tokens, IDs of unequal
  length, one example a user) is compared on it, whatever the base is.

  Args:
    arg: As of `base`.
    **changes: Section -> further changes.
  """
  c = base(arg if arg in ("smoke", "cpu") else "")
  model = {**c.model.to_dict(), **changes.pop("model", {})}
  task = {"augmentation": "prefixes", **changes.pop("task", {})}
  return {"model": model, "task": task, **changes}


def handbook(arg: str, **grids: Cells) -> config_dict.ConfigDict:
  """Returns the settings of a handbook of these grids, in this order.

  SASRec, which stands below every grid, is a cell of its own.
  """
  c = base(arg)
  yardstick = {
    section: sasrec.get_config()[section].to_dict()
    for section in ("tokenizer", "collisions", "model")
  }
  grids = {**grids, "baselines": {"sasrec": yardstick}}
  if arg == "smoke":
    grids = {
      grid: {name: _shrunk(c, cell) for name, cell in cells.items()}
      for grid, cells in grids.items()
    }
  c.grids = {name: dict(cells) for name, cells in grids.items()}
  # A ConfigDict sorts its keys.
  c.cell_order = tuple(
    f"{grid}/{name}" for grid, cells in grids.items() for name in cells
  )
  return c


def _shrunk(c: config_dict.ConfigDict, cell: Mapping[str, Any]) -> Cells:
  """Returns a cell's changes in sizes that suit the smoke settings."""
  changes = {section: dict(change) for section, change in cell.items()}
  tokenizer = changes.get("tokenizer", {})
  for key in ("codebook_sizes", "residual_sizes", "subspace_sizes"):
    if key in tokenizer:
      tokenizer[key] = tuple(max(k // 32, 2) for k in tokenizer[key])
  if "levels" in tokenizer:
    tokenizer["levels"] = (2, 2, 2)
  if "num_bits" in tokenizer:
    tokenizer["num_bits"] = 3
  if tokenizer.get("name") in _BY_GRADIENT:
    tokenizer["num_epochs"] = 4
  if "name" in changes.get("model", {}):
    sizes = ("dtype", "emb_dim", "num_heads", "head_dim", "mlp_dim")
    changes["model"] |= {key: c.model[key] for key in sizes}
  if "dim" in changes.get("embedding", {}):
    changes["embedding"]["dim"] = 16
  if changes.get("collisions", {}).get("name") in ("knn", "random_last_level"):
    changes["collisions"]["capacity"] = 4
  if "remove_top_codes" in changes.get("hourglass", {}):
    changes["hourglass"]["remove_top_codes"] = 2
  if "retrieval" in changes:
    changes["retrieval"]["num_users"] = 16
  return changes
