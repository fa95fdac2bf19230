r"""RQ-VAE: 3 levels of 256 codes.

  python -m launch.pipeline --workdir=runs/rq_vae \
    --config=configs/tokenizers/rq_vae.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="rq_vae",
    codebook_sizes=(256, 256, 256),
    hidden_dims=(512, 256, 128),
    code_dim=32,
    num_epochs=1000,
    batch_size=1024,
    learning_rate=1e-3,
  )
  return c
