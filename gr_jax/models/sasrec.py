"""SASRec, the yardstick: a causal transformer over items, not over codes.

Kang and McAuley 2018 (arXiv:1808.09781) with full cross-entropy over the
catalog in place of sampled negatives, which makes it a strong baseline
(Klenitskiy and Vasilev 2023, arXiv:2309.07602). It stands behind the
generators' interface, so that training, validation and evaluation are theirs:
an item is the last of its tokens, as the policy `sparse_id` numbers items, and
of the levels before nothing is learned.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gr_jax.core import checks
from gr_jax.models import attention, decoder_only, item_sequences, layers
from gr_jax.models import config as config_lib
from gr_jax.models import dropout as dropout_lib
from gr_jax.models import encoder_decoder as encdec


class SASRec(nn.Module):
  """Scores of every item from the last hidden state of a user's history.

  Blocks are the generators' (RMS norms, no biases), positions are learned and
  counted from the newest item, and items of input and output share one table.
  Logits are of a level's own codes; of the levels before the last they are 0.
  `num_encoder_layers` is not read.

  >>> import jax, jax.numpy as jnp
  >>> from gr_jax.models import SASRec, T5Config
  >>> config = T5Config(vocab_size=10, emb_dim=8, mlp_dim=8)
  >>> model = SASRec(config, code_ranges=((2, 2), (4, 6)), max_history=3)
  >>> inputs = jnp.array([[2, 5, 2, 6, 1, 0, 0]])  # items 5 and 6
  >>> tokens = jnp.array([[0, 2]])
  >>> params = model.init(jax.random.key(0), inputs, tokens)["params"]
  >>> logits = model.apply({"params": params}, inputs, tokens)
  >>> [level.shape for level in logits]
  [(1, 1, 2), (1, 1, 6)]
  """

  config: config_lib.T5Config
  code_ranges: item_sequences.CodeRanges  # of the L levels
  max_history: int  # H

  packs: ClassVar[bool] = True
  reads_items: ClassVar[bool] = True

  def setup(self):
    """Declares the items' and positions' tables and the layers.

    Raises:
      InputError: Items of one token, which EOS could not be told from, or
        codes that are no tokens of the config's.
    """
    cfg = self.config
    item_sequences.check_ranges(self.code_ranges, cfg.vocab_size)
    if len(self.code_ranges) < 2:
      raise checks.InputError(
        "SASRec reads an item's number from its last token of two or more; "
        "use collisions.name='sparse_id'."
      )
    self.token_embedder = layers.Embedding(
      cfg.vocab_size, cfg.emb_dim, cfg.activation_dtype, scaled=True
    )
    self.position_embedder = layers.Embedding(
      self.max_history, cfg.emb_dim, cfg.activation_dtype, scaled=True
    )
    self.layers = [
      decoder_only.Layer(cfg) for _ in range(cfg.num_decoder_layers)
    ]
    self.decoder_norm = encdec.norm(cfg)

  def __call__(
    self,
    inputs: Int[Array, "B S"],
    decoder_inputs: Int[Array, "_ T"],
    *,
    deterministic: bool = True,
    dropout_rate: dropout_lib.Rate | None = None,
    input_segment_ids: Int[Array, "B S"] | None = None,
    decoder_segment_ids: Int[Array, "B T"] | None = None,
  ) -> item_sequences.LevelLogits:
    """Returns float32 logits of the items' codes, level by level.

    Args:
      inputs: History tokens, L an item; EOS and padding may follow.
      decoder_inputs: For their shape alone, as an item is written at once:
        one item, T = L, or the one after each of the inputs', T = H L.
      deterministic: Whether dropout is off; else a "dropout" stream is drawn.
      dropout_rate: Overrides the config's rate; may be a traced scalar.
      input_segment_ids: Packed rows only: number of the example each input
        token belongs to.
      decoder_segment_ids: Likewise; must agree with the inputs'.

    Returns:
      L arrays [B, P, K_l] for P items, T = P L; all but the last are 0.

    Raises:
      InputError: Batch sizes differ, or T fits neither form.
    """
    encdec.check_batch(inputs, decoder_inputs)
    del decoder_segment_ids  # targets stand where their history's item does
    cfg = self.config
    dropout = None
    if not deterministic:
      dropout = dropout_lib.start(
        self.make_rng("dropout"),
        rate=cfg.dropout_rate if dropout_rate is None else dropout_rate,
        num_sites=1 + decoder_only.LAYER_SITES * cfg.num_decoder_layers,
        shared=cfg.dropout_shared,
      )
    num_levels = len(self.code_ranges)
    items = item_sequences.split_items(inputs, num_levels)
    num_targets = item_sequences.count_targets(
      decoder_inputs, items, num_levels
    )
    hidden = self._encode(items, input_segment_ids, dropout)
    if num_targets == 1:
      hidden = item_sequences.newest(hidden, items)
    hidden = hidden[:, :num_targets]
    return tuple(self._logits(hidden, level) for level in range(num_levels))

  def encode(self, inputs: Int[Array, "B S"]) -> Float[Array, "B 1 E"]:
    """Returns the last hidden state."""
    items = item_sequences.split_items(inputs, len(self.code_ranges))
    return item_sequences.newest(self._encode(items, None, None), items)

  def start_decode(
    self, encoded: Float[Array, "B 1 E"], inputs: Int[Array, "B S"]
  ) -> encdec.DecodeContext:
    """Returns what `decode_step` needs of each user."""
    return encdec.DecodeContext(
      memory=encoded, mask=attention.padding_mask(inputs)
    )

  def init_cache(self, batch_size: int, max_length: int) -> encdec.Cache:
    """Returns an empty cache: a beam owns nothing."""
    del batch_size, max_length
    return ()

  def decode_step(
    self,
    tokens: Int[Array, "B W"],
    cache: encdec.Cache,
    context: encdec.DecodeContext,
    *,
    level: int,
  ) -> tuple[Float[Array, "B W K"], encdec.Cache]:
    """Returns the logits of `__call__` at level `level`."""
    logits = self._logits(context.memory, level)  # [B, 1, K]
    return jnp.broadcast_to(logits, (*tokens.shape, logits.shape[-1])), cache

  def _encode(self, items, segment_ids, dropout):
    mask = item_sequences.item_mask(items, segment_ids)  # [B, H, H]
    # Items of the same example that come later: positions count from the end.
    seers = mask & item_sequences.is_item(items)[:, :, None]
    later = jnp.sum(seers, axis=1, dtype=jnp.int32) - 1  # [B, H]
    positions = jnp.clip(self.max_history - 1 - later, 0, self.max_history - 1)
    x = self.token_embedder(items[:, :, -1]) + self.position_embedder(positions)
    x = dropout_lib.drop(dropout, 0, x)
    bias = jnp.zeros((self.config.num_heads, *mask.shape[1:]), jnp.float32)
    rest = dropout_lib.after(dropout, 1)
    x = decoder_only.run_layers(
      self.layers, x, mask=mask, bias=bias, dropout=rest
    )
    return self.decoder_norm(x)

  def _logits(self, x, level):
    first, count = self.code_ranges[level]
    if level < len(self.code_ranges) - 1:
      return jnp.zeros((*x.shape[:-1], count), jnp.float32)
    return self.token_embedder.attend(x, (first, count))
