r"""VQ-VAE: one level of 4,096 codes, all that 12,000 items can fill.

  python -m launch.pipeline --workdir=runs/vq_vae \
    --config=configs/tokenizers/vq_vae.py \
    --config.data.path=DATA/beauty

12 bits an item: half of what the other configs of this folder spend.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="vq_vae",
    codebook_sizes=(4096,),
    hidden_dims=(512, 256, 128),
    code_dim=32,
    num_epochs=1000,
    batch_size=1024,
    learning_rate=1e-3,
  )
  return c
