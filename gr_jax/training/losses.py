"""Token losses with padding weighted out."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from gr_jax.models import item_sequences

PAD_ID = 0


@struct.dataclass
class LossTerms:
  """Sums over a batch's target tokens, mergeable by addition."""

  loss: Any  # float32 [], summed cross-entropy in nats
  correct: Any  # float32 [], tokens whose largest logit is the target
  tokens: Any  # float32 [], target tokens that are not padding


def token_cross_entropy(
  logits: Float[Array, "B T V"],
  targets: Int[Array, "B T"],
  *,
  label_smoothing: float = 0.0,
) -> LossTerms:
  """Sums -log p(target) over the tokens that are not padding.

  With smoothing s the target distribution is (1 - s) on the target plus s
  spread evenly over all V tokens (Szegedy et al. 2016, arXiv:1512.00567,
  section 7).

  Args:
    logits: float32 [B, T, V].
    targets: int32 [B, T]; 0 is padding and counts for nothing.
    label_smoothing: s, in [0, 1).

  Returns:
    The batch's sums.
  """
  return _cross_entropy(logits, targets, targets != PAD_ID, label_smoothing)


def level_cross_entropy(
  logits: item_sequences.LevelLogits,
  targets: Int[Array, "B T"],
  *,
  code_ranges: item_sequences.CodeRanges,
  label_smoothing: float = 0.0,
) -> LossTerms:
  """Sums -log p(target) as `token_cross_entropy`, over each level's own codes.

  It is the loss of logits of all tokens that are -inf at those of other
  levels, but that smoothing spreads over the level's K_l codes. A direct
  path's prediction of the last code counts as L tokens: both paths to an item
  weigh the same.

  Args:
    logits: float32, L arrays [B, P, K_l], or one more of a direct path.
    targets: int32 [B, P L], items of L tokens; 0 is padding.
    code_ranges: First token and number of codes of each level.
    label_smoothing: s, in [0, 1).

  Returns:
    The batch's sums.

  Raises:
    InputError: Logits of another number of levels.
  """
  items = item_sequences.split_items(targets, len(code_ranges))  # [B, P, L]
  terms = [
    _cross_entropy(
      own,
      items[..., level] - code_ranges[level][0],
      items[..., level] != PAD_ID,
      label_smoothing,
    )
    for own, level in zip(
      logits, item_sequences.levels_of(logits, len(code_ranges)), strict=True
    )
  ]
  if len(terms) > len(code_ranges):
    terms[-1] = jax.tree.map(lambda x: x * len(code_ranges), terms[-1])
  return jax.tree.map(lambda *sums: sum(sums), *terms)


def _cross_entropy(logits, classes, mask, label_smoothing):
  """The sums over [B, T] classes of logits [B, T, K] where `mask` is True."""
  log_norm = jax.nn.logsumexp(logits, axis=-1)  # [B, T]
  every = jnp.arange(logits.shape[-1], dtype=classes.dtype)
  # A comparison, not a gather: the gradient of a gather is a scatter-add.
  is_target = classes[..., None] == every[None, None]  # [B, T, K]
  picked = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)  # [B, T]
  loss = log_norm - picked
  if label_smoothing:
    even = log_norm - jnp.mean(logits, axis=-1)
    loss = (1.0 - label_smoothing) * loss + label_smoothing * even
  weights = mask.astype(jnp.float32)  # [B, T]
  correct = (picked >= jnp.max(logits, axis=-1)).astype(jnp.float32)
  return LossTerms(
    loss=jnp.sum(loss * weights),
    correct=jnp.sum(correct * weights),
    tokens=jnp.sum(weights),
  )
