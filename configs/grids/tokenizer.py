"""Every tokenizer at 24 bits an item; random and LSH codes are the floors."""

from ml_collections import config_dict

from configs import grids
from configs.tokenizers import (
  balanced_residual_kmeans,
  fsq,
  lsh,
  minibatch_residual_kmeans,
  opmq,
  opq,
  pq,
  random,
  residual_kmeans,
  rq_opq,
  rq_vae,
  rvq,
)

CELLS = {
  module.__name__.rpartition(".")[-1]: {
    "tokenizer": module.get_config().tokenizer.to_dict()
  }
  for module in (
    residual_kmeans,
    rq_vae,
    random,
    lsh,
    rvq,
    balanced_residual_kmeans,
    rq_opq,
    opq,
    fsq,
    opmq,
    pq,
    minibatch_residual_kmeans,
  )
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, tokenizer=CELLS)
