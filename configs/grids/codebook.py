"""How an RQ-VAE's codebooks start, pass gradients on and move."""

from ml_collections import config_dict

from configs import grids
from configs.tokenizers import rq_vae

_CHANGES = {
  "kmeans_straight_through": {},
  "random_normal": {"codebook_init": "random_normal"},
  "large_variance": {"codebook_init": "large_variance_normal"},
  "rotation_trick": {"estimator": "rotation_trick"},
  "gumbel_softmax": {"estimator": "gumbel_softmax"},
  "moving_averages": {"ema_decay": 0.99},
  "no_revival": {"revive_dead_codes": False},
}
CELLS = {
  name: {"tokenizer": rq_vae.get_config().tokenizer.to_dict() | change}
  for name, change in _CHANGES.items()
}


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the handbook of this grid."""
  return grids.handbook(arg, codebook=CELLS)
