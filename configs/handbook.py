r"""Every grid of the handbook, those that decide most first.

  python -m launch.handbook --config=configs/handbook.py \
    --config.data.path=DATA/beauty --workdir=runs/handbook_beauty

One grid alone: `--config=configs/grids/collisions.py`.
"""

from ml_collections import config_dict

from configs import grids
from configs.grids import (
  backbone,
  balance,
  codebook,
  collisions,
  decoding,
  embedding,
  history,
  hourglass,
  shape,
  tokenizer,
)


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the settings of all grids; `arg` as in `configs.grids.base`."""
  return grids.handbook(
    arg,
    tokenizer=tokenizer.CELLS,
    history=history.cells(arg),
    collisions=collisions.CELLS,
    backbone=backbone.cells(arg),
    decoding=decoding.CELLS,
    shape=shape.CELLS,
    balance=balance.CELLS,
    hourglass=hourglass.cells(arg),
    codebook=codebook.CELLS,
    embedding=embedding.CELLS,
  )
