"""Settings that experiments share; each states what it changes."""

from ml_collections import config_dict


def base() -> config_dict.ConfigDict:
  """Returns TIGER's shape (arXiv:2305.05065) with k-means codes."""
  c = config_dict.ConfigDict()
  c.seed = 0
  # loader: "device", or "grain" or "seqio" for data that no device can hold.
  c.data = dict(name="folder", path="", loader="device")
  c.embedding = dict(name="tfidf_svd", dim=256)
  c.tokenizer = dict(name="residual_kmeans", codebook_sizes=(256, 256, 256))
  c.hourglass = dict(drop_level=0, remove_top_codes=0, remove_level=1)
  c.collisions = dict(name="extra_level")
  c.task = dict(
    max_history=20,
    augmentation="prefixes",
    num_user_buckets=0,
    neighbor_share=0.0,
    neighbor_temperature=0.05,
    history_cut_rate=0.0,
  )
  c.model = dict(
    name="encoder_decoder",
    dtype="bfloat16",
    emb_dim=128,
    num_heads=6,
    head_dim=64,
    mlp_dim=1024,
    num_encoder_layers=4,
    num_decoder_layers=4,
    mlp_activations=("gelu", "linear"),
    dropout_rate=0.1,
    direct_path=False,
  )
  c.training = dict(
    replicas=1,
    learning_rates=(),  # one a replica; () for the optimizer's
    dropout_rates=(),  # one a replica; () for the model's
    batch_size=256,
    num_steps=20_000,
    steps_per_dispatch=100,
    eval_every_steps=1_000,
    patience=10,
    label_smoothing=0.0,
  )
  c.optimizer = dict(
    learning_rate=1e-3,
    schedule="cosine",
    warmup_steps=500,
    weight_decay=1e-2,
  )
  c.validation = dict(num_users=0, beam_width=20)
  c.decoding = dict(
    beam_width=50,
    level_widths=(),
    constrained=True,
    rerank=False,
    ensemble=False,
  )
  c.evaluation = dict(batch_size=256)
  c.mesh = dict(data=-1, model=1, replica=1, rules="tensor")
  return c


def amazon2014(arg: str) -> config_dict.ConfigDict:
  """Returns the settings of the Amazon 2014 5-core sets.

  Args:
    arg: "" for TIGER's shape on codes of the texts, "best" for what measured
      best on validation (docs/experiments.md), "cpu" for minutes of one CPU
      core, "cpu_hour" for about an hour of one.
  """
  if arg not in ("", "best", "cpu", "cpu_hour"):
    raise ValueError(
      f"Unknown config argument {arg!r}; use '', 'best', 'cpu' or 'cpu_hour'."
    )
  c = base()
  c.embedding = dict(name="precomputed")
  c.training.update(
    replicas=3,
    batch_size=1_024,
    num_steps=8_000,
    eval_every_steps=500,
    patience=6,
  )
  if arg:
    c.embedding.name = "text_and_co_occurrence"
    c.task.augmentation = "sequences"
    c.model.name = "rq_transformer"
    c.optimizer.warmup_steps = 100
  if arg in ("best", "cpu_hour"):
    # An item's own number as its last code, its text neighbors as targets and
    # short histories beside the whole: what is met often enough is known well.
    c.collisions = dict(name="sparse_id")
    c.task.update(neighbor_share=0.2, history_cut_rate=0.5)
  if arg == "best":
    c.model.update(
      emb_dim=256, num_heads=4, num_decoder_layers=2, dropout_rate=0.25,
      direct_path=True,
    )  # fmt: skip
    c.training.update(num_steps=1_800, eval_every_steps=200, patience=0)
    c.optimizer.weight_decay = 0.5
    c.validation.update(num_users=10_000, beam_width=50)
    c.decoding.update(beam_width=200, rerank=True, ensemble=True)
    c.evaluation.batch_size = 1_024
  if arg == "cpu":
    c.model.update(
      dtype="float32", emb_dim=64, num_heads=4, head_dim=16, mlp_dim=256,
      num_encoder_layers=2, num_decoder_layers=1,
    )  # fmt: skip
    c.training.update(
      replicas=1, batch_size=256, num_steps=2_000, eval_every_steps=500
    )
    c.optimizer.learning_rate = 3e-3
    c.validation.num_users = 4_000
    c.decoding.update(beam_width=100, rerank=True)
  if arg == "cpu_hour":
    c.model.update(
      dtype="float32", emb_dim=128, num_heads=2, mlp_dim=512,
      num_encoder_layers=3, num_decoder_layers=1, direct_path=True,
    )  # fmt: skip
    c.training.update(
      replicas=1, batch_size=512, num_steps=3_000, steps_per_dispatch=20,
      eval_every_steps=500, patience=0,
    )  # fmt: skip
    c.optimizer.learning_rate = 2e-3
    c.validation.update(num_users=4_000, beam_width=50)
    c.decoding.update(beam_width=100, rerank=True)
  return c
