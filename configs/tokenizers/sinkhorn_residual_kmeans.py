r"""Sinkhorn-balanced residual k-means: 3 levels of 256 codes.

  python -m launch.pipeline --workdir=runs/sinkhorn_residual_kmeans \
    --config=configs/tokenizers/sinkhorn_residual_kmeans.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="sinkhorn_residual_kmeans",
    codebook_sizes=(256, 256, 256),
    max_iters=20,
  )
  return c
