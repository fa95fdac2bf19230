r"""Mini-batch residual k-means: 3 levels of 256 codes.

  python -m launch.pipeline --workdir=runs/minibatch_residual_kmeans \
    --config=configs/tokenizers/minibatch_residual_kmeans.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="minibatch_residual_kmeans",
    codebook_sizes=(256, 256, 256),
    batch_size=4096,
    num_passes=10,
  )
  return c
