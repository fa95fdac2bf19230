r"""TIGER as its paper describes it (arXiv:2305.05065, section 4.1).

  python -m launch.pipeline --config=configs/tiger.py:toys \
    --config.data.path=DATA/toys --workdir=runs/tiger_toys

RQ-VAE codes of the texts, 3 x 256 and a level against collisions; 2,000 user
tokens; 4 + 4 layers with ReLU; batches of 256; .01 for 10,000 steps, then
falling with the root of the step; an unconstrained beam search. The paper
names T5X and no optimizer: Adafactor, T5X's own, whose rates these are. It
takes under 9 minutes of one H200 (docs/experiments.md). Where it departs:

- The tokenizer's optimizer: AdamW of 1e-3 on standardized rows for 1,000
  epochs, the paper's Adagrad of .4 for 20,000.
- Texts are whatever vectors the data set has, the paper's are Sentence-T5's.
- Training stops when validation no longer improves, the paper's after as many
  steps as are set here; three seeds, in bfloat16. The beam's width, 50, is not
  in the paper.
"""

from ml_collections import config_dict

from configs import beauty, toys

_BASES = {"beauty": (beauty, 200_000), "toys": (toys, 100_000)}


def get_config(arg: str = "beauty") -> config_dict.ConfigDict:
  """Returns the run's config for one of the data sets."""
  if arg not in _BASES:
    raise ValueError(f"Unknown data set {arg!r}; use 'beauty' or 'toys'.")
  base, num_steps = _BASES[arg]
  c = base.get_config()
  c.tokenizer = dict(
    name="rq_vae",
    codebook_sizes=(256, 256, 256),
    hidden_dims=(512, 256, 128),
    code_dim=32,
    commitment_weight=0.25,
    num_epochs=1000,
    batch_size=1024,
    learning_rate=1e-3,
  )
  c.task.num_user_buckets = 2_000
  c.model.mlp_activations = ("relu",)
  c.training.update(
    batch_size=256, num_steps=num_steps, eval_every_steps=2_000, patience=5
  )
  c.optimizer = dict(
    name="adafactor",
    learning_rate=0.01,
    schedule="t5",
    warmup_steps=10_000,
    weight_decay=0.0,
    clip_norm=0.0,
  )
  c.validation.num_users = 8_000
  c.decoding.constrained = False
  return c
