"""Codes as the data wants them, or forced to be used evenly."""

from ml_collections import config_dict

from configs import grids
from configs.tokenizers import (
  balanced_residual_kmeans,
  residual_kmeans,
  rq_vae,
  sinkhorn_residual_kmeans,
)

_FREE = residual_kmeans.get_config().tokenizer.to_dict()
_BALANCED = balanced_residual_kmeans.get_config().tokenizer.to_dict()
_SINKHORN = sinkhorn_residual_kmeans.get_config().tokenizer.to_dict()
_RQ_VAE = rq_vae.get_config().tokenizer.to_dict()
CELLS = {
  name: {"tokenizer": tokenizer}
  for name, tokenizer in {
    "kmeans_free": _FREE,
    "kmeans_balanced": _BALANCED,
    "kmeans_sinkhorn": _SINKHORN,
    "rq_vae_free": _RQ_VAE,
    "rq_vae_sinkhorn": _RQ_VAE | {"sinkhorn_epsilon": 0.05},
    "rq_vae_entropy": _RQ_VAE | {"entropy_weight": 0.1},
  }.items()
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, balance=CELLS)
