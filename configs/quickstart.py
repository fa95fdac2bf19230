r"""The whole path on embedded synthetic data, for two CPU cores.

  python -m launch.pipeline --config=configs/quickstart.py \
    --workdir=runs/quickstart

`configs/quickstart.py:smoke` shrinks it to seconds, for tests.
"""

from ml_collections import config_dict

from configs import common


def get_config(arg: str = "") -> config_dict.ConfigDict:
  """Returns the run's config."""
  if arg not in ("", "smoke"):
    raise ValueError(f"Unknown config argument {arg!r}; use '' or 'smoke'.")
  c = common.base()
  c.data = dict(name="synthetic", num_items=1_440, loader="device")
  c.embedding = dict(name="tfidf_svd", dim=64, normalization="whiten")
  c.tokenizer.codebook_sizes = (64, 32, 16)
  c.task.max_history = 8
  c.model.update(
    dtype="float32",
    emb_dim=64,
    num_heads=4,
    head_dim=16,
    mlp_dim=128,
    num_encoder_layers=2,
    num_decoder_layers=2,
  )
  c.training.update(
    batch_size=128,
    num_steps=1_500,
    steps_per_dispatch=50,
    eval_every_steps=250,
    patience=0,
  )
  c.optimizer.update(learning_rate=3e-3, warmup_steps=100)
  c.validation.num_users = 500
  if arg == "smoke":
    c.data.update(num_items=240, num_users=200)
    c.embedding.dim = 16
    c.tokenizer.codebook_sizes = (8, 8, 8)
    c.model.update(
      emb_dim=16, num_heads=2, head_dim=8, mlp_dim=32,
      num_encoder_layers=1, num_decoder_layers=1,
    )  # fmt: skip
    c.training.update(
      batch_size=32, num_steps=20, steps_per_dispatch=5, eval_every_steps=10
    )
    c.optimizer.warmup_steps = 5
    c.validation.num_users = 64
    c.evaluation.batch_size = 64
  return c
