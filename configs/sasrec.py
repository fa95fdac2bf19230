r"""SASRec with full cross-entropy, the yardstick, on Beauty or Toys.

  python -m launch.pipeline --config=configs/sasrec.py:toys \
    --config.data.path=DATA/toys --workdir=runs/sasrec_toys

The same path, split and evaluation as `configs/beauty.py`; an item is a number
of its own, whose codes say nothing. The report calls its row "generator".
"""

from ml_collections import config_dict

from configs import beauty, toys

_BASES = {"beauty": beauty, "toys": toys}


def get_config(arg: str = "beauty") -> config_dict.ConfigDict:
  """Returns the run's config for one of the data sets."""
  if arg not in _BASES:
    raise ValueError(f"Unknown data set {arg!r}; use 'beauty' or 'toys'.")
  c = _BASES[arg].get_config()
  c.tokenizer = dict(name="random", codebook_sizes=(2,))
  c.collisions = dict(name="sparse_id", spare_items=0)
  c.task.augmentation = "sequences"
  c.model.update(
    name="sasrec",
    emb_dim=256,
    num_heads=4,
    num_decoder_layers=2,
    mlp_activations=("relu",),
    dropout_rate=0.2,
  )
  c.training.update(
    batch_size=512, num_steps=1_200, eval_every_steps=200, patience=0
  )
  c.optimizer.warmup_steps = 100
  c.decoding.beam_width = 200
  c.evaluation.batch_size = 1_024
  return c
