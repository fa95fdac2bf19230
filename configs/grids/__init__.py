"""The handbook's grids: what each cell changes in the base settings.

A cell is a nested mapping of sections. One that names a component replaces
the whole section; any other changes the keys it gives. "retrieval" in a cell
compares ways to retrieve, see `RetrievalOptions`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from configs import common, quickstart, sasrec

# Cell -> section -> changes.
Cells = Mapping[str, Mapping[str, Any]]
# Updates of networks of tokens, whose examples are one target each.
_SHORT_OF_TOKENS = {"batch_size": 1_024, "num_steps": 700}
# Bits of a code in place of 8, and epochs of fits by gradient.
_SMALLER = {"smoke": (3, 4), "cpu": (6, 200)}
_BY_GRADIENT = ("rq_vae", "rvq", "fsq", "opmq")


def base(arg: str) -> config_dict.ConfigDict:
  """Returns what all cells share.

  Args:
    arg: "" for an accelerator, "short" for minutes of one (a small network of
      items, fewer steps, a narrow beam), "cpu" for minutes a cell on a CPU core
      and catalogs of some thousand items, "smoke" for synthetic data and
      seconds a cell.
  """
  if arg == "smoke":
    return quickstart.get_config("smoke")
  if arg == "short":
    c = common.amazon2014("")
    c.task.augmentation = "sequences"
    c.model.update(name="rq_transformer", num_decoder_layers=2)
    c.training.update(
      batch_size=512, num_steps=1_200, eval_every_steps=1_200, patience=0
    )
    c.optimizer.warmup_steps = 100
    c.validation.num_users = 2_000
    c.decoding.beam_width = 20
    c.evaluation.batch_size = 1_024
    return c
  c = common.amazon2014(arg)
  if arg == "cpu":
    c.embedding.name = "precomputed"
    c.tokenizer.codebook_sizes = (64, 64, 64)  # as many items a code
    c.model.update(mlp_dim=128, dropout_rate=0.0)
    c.training.update(
      replicas=3, batch_size=32, num_steps=800, eval_every_steps=400,
      patience=0,
    )  # fmt: skip
    c.validation.num_users = 1_000
    c.decoding.update(beam_width=20, rerank=False)
  return c


def of_tokens(arg: str, **changes: Any) -> dict[str, Any]:
  """Returns changes to an encoder-decoder that reads and writes tokens.

  What it takes and networks of items do not (user tokens, IDs of unequal
  length, one example a user) is compared on it, whatever the base is.

  Args:
    arg: As of `base`.
    **changes: Section -> further changes.
  """
  model = base(arg if arg in _SMALLER else "").model.to_dict()
  model["name"] = "encoder_decoder"
  model["num_decoder_layers"] = model["num_encoder_layers"]
  model |= changes.pop("model", {})
  task = {"augmentation": "prefixes", **changes.pop("task", {})}
  if arg == "short":
    changes["training"] = _SHORT_OF_TOKENS
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
  if arg in _SMALLER:
    # Names of shapes are what they say.
    fixed = ("shape",) if arg == "cpu" else ()
    grids = {
      grid: cells
      if grid in fixed
      else {name: _smaller(arg, c, cell) for name, cell in cells.items()}
      for grid, cells in grids.items()
    }
  c.grids = {name: dict(cells) for name, cells in grids.items()}
  # A ConfigDict sorts its keys.
  c.cell_order = tuple(
    f"{grid}/{name}" for grid, cells in grids.items() for name in cells
  )
  return c


def _smaller(
  arg: str, c: config_dict.ConfigDict, cell: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns a cell's changes in sizes that suit small settings."""
  bits, num_epochs = _SMALLER[arg]
  changes = {section: dict(change) for section, change in cell.items()}
  tokenizer = changes.get("tokenizer", {})
  for key in ("codebook_sizes", "residual_sizes", "subspace_sizes", "levels"):
    if key in tokenizer:
      tokenizer[key] = _fewer_bits(tokenizer[key], bits / 8)
  if "num_bits" in tokenizer:
    tokenizer["num_bits"] = bits
  if tokenizer.get("name") in _BY_GRADIENT:
    tokenizer["num_epochs"] = num_epochs
  if "name" in changes.get("model", {}):
    sizes = ("dtype", "emb_dim", "num_heads", "head_dim", "mlp_dim")
    changes["model"] |= {key: c.model[key] for key in sizes}
  if "retrieval" in changes:
    changes["retrieval"]["num_users"] = 16 if arg == "smoke" else 500
  if arg == "cpu":
    return changes
  if "dim" in changes.get("embedding", {}):
    changes["embedding"]["dim"] = 16
  if changes.get("collisions", {}).get("name") in ("knn", "random_last_level"):
    changes["collisions"]["capacity"] = 4
  if "remove_top_codes" in changes.get("hourglass", {}):
    changes["hourglass"]["remove_top_codes"] = 2
  return changes


def _fewer_bits(sizes: Sequence[int], share: float) -> tuple[int, ...]:
  """Returns codebook sizes of a share of the bits, spread as they were."""
  done = total = 0
  result = []
  for size in sizes:
    total += math.log2(size)
    bits = max(math.floor(total * share) - done, 1)
    done += bits
    result.append(2**bits)
  return tuple(result)
