r"""An autoencoder, then residual k-means: 3 levels of 256 codes.

  python -m launch.pipeline --workdir=runs/autoencoder \
    --config=configs/tokenizers/autoencoder.py \
    --config.data.path=DATA/beauty

24 bits an item, as all configs of this folder but vq_vae's. Any tokenizer can
be the quantizer: quantizer=dict(name="opq", codebook_sizes=...). The fit's
report, `launch.report` and `launch.compare_tokenizers` give the error without
codes, too: the ceiling of what quantizers between such networks can keep.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config; `cpu` shrinks the generator."""
  c = common.amazon2014(arg)
  c.tokenizer = dict(
    name="autoencoder",
    hidden_dims=(512, 256, 128),
    code_dim=32,
    num_epochs=1000,
    batch_size=1024,
    learning_rate=1e-3,
    quantizer=dict(name="residual_kmeans", codebook_sizes=(256, 256, 256)),
  )
  return c
