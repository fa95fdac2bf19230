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
  c = _BASES[arg].get_config("best")
  c.embedding = dict(name="precomputed")
  c.tokenizer = dict(name="random", codebook_sizes=(2,))
  c.collisions = dict(name="sparse_id", spare_items=0)
  c.task.update(neighbor_share=0.0, history_cut_rate=0.0)
  c.training.update(batch_size=512, num_steps=1_200)
  c.optimizer.weight_decay = 1e-2
  c.validation.update(num_users=0, beam_width=20)
  c.decoding.update(rerank=False, ensemble=False)
  c.model.update(
    name="sasrec",
    direct_path=False,
    mlp_activations=("relu",),
    num_decoder_layers=2,
    dropout_rate=0.2,
  )
  return c
