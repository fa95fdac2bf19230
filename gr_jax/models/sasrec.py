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
from gr_jax.models import attention, decoder_only, layers
from gr_jax.models import config as config_lib
from gr_jax.models import dropout as dropout_lib
from gr_jax.models import encoder_decoder as encdec


class SASRec(nn.Module):
  """Scores of every item from the last hidden state of a user's history.

  Blocks are the generators' (RMS norms, no biases), positions are learned and
  counted from the newest item, and items of input and output share one table.
  `num_encoder_layers` is not read.

  >>> import jax, jax.numpy as jnp
  >>> from gr_jax.models import SASRec, T5Config
  >>> config = T5Config(vocab_size=10, emb_dim=8, mlp_dim=8)
  >>> model = SASRec(config, num_levels=2, max_history=3)
  >>> inputs = jnp.array([[2, 5, 2, 6, 1, 0, 0]])  # items 5 and 6
  >>> tokens = jnp.array([[0, 2]])
  >>> params = model.init(jax.random.key(0), inputs, tokens)["params"]
  >>> model.apply({"params": params}, inputs, tokens).shape
  (1, 2, 10)
  """

  config: config_lib.T5Config
  num_levels: int  # L, tokens of an item
  max_history: int  # H

  packs: ClassVar[bool] = False  # positions count within a row

  def setup(self):
    """Declares the items' and positions' tables and the layers.

    Raises:
      InputError: Items of one token, which EOS could not be told from.
    """
    cfg = self.config
    if self.num_levels < 2:
      raise checks.InputError(
        "SASRec reads an item's number from its last token of two or more; "
        "use collisions.name='sparse_id'."
      )
    self.token_embedder = layers.Embedding(
      cfg.vocab_size, cfg.emb_dim, cfg.activation_dtype
    )
    self.position_embedder = layers.Embedding(
      self.max_history, cfg.emb_dim, cfg.activation_dtype
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
  ) -> Float[Array, "B T V"]:
    """Returns float32 logits; those of all levels but the last are 0.

    Args:
      inputs: History tokens, L an item, then EOS; 0 where padded.
      decoder_inputs: For their shape alone: an item is written at once.
      deterministic: Whether dropout is off; else a "dropout" stream is drawn.
      dropout_rate: Overrides the config's rate; may be a traced scalar.

    Raises:
      InputError: Batch sizes differ.
    """
    encdec.check_batch(inputs, decoder_inputs)
    cfg = self.config
    dropout = None
    if not deterministic:
      dropout = dropout_lib.start(
        self.make_rng("dropout"),
        rate=cfg.dropout_rate if dropout_rate is None else dropout_rate,
        num_sites=1 + decoder_only.LAYER_SITES * cfg.num_decoder_layers,
        shared=cfg.dropout_shared,
      )
    logits = self._logits(self._encode(inputs, dropout))  # [B, 1, V]
    before = decoder_inputs.shape[1] - 1
    return jnp.pad(logits, ((0, 0), (before, 0), (0, 0)))

  def encode(self, inputs: Int[Array, "B S"]) -> Float[Array, "B 1 E"]:
    """Returns the last hidden state."""
    return self._encode(inputs, None)

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
  ) -> tuple[Float[Array, "B W V"], encdec.Cache]:
    """Returns the logits of `__call__` at position `level`."""
    shape = (*tokens.shape, self.config.vocab_size)
    if level < self.num_levels - 1:
      return jnp.zeros(shape, jnp.float32), cache
    return jnp.broadcast_to(self._logits(context.memory), shape), cache

  def _encode(self, inputs, dropout):
    last = self.num_levels - 1
    items = inputs[:, last : self.max_history * self.num_levels]
    items = decoder_only.align_right(items[:, :: self.num_levels])  # [B, H]
    positions = jnp.arange(self.max_history, dtype=jnp.int32)
    x = self.token_embedder(items) + self.position_embedder(positions)[None]
    x = dropout_lib.drop(dropout, 0, x)
    mask = (items != 0)[:, None, :] & attention.causal_mask(self.max_history)
    bias = jnp.zeros((self.config.num_heads, *mask.shape[1:]), jnp.float32)
    for index, layer in enumerate(self.layers):
      first = 1 + decoder_only.LAYER_SITES * index
      part = dropout_lib.sites(dropout, first, decoder_only.LAYER_SITES)
      # Nobody reads the last layer elsewhere than at the newest item.
      start = self.max_history - 1 if index == len(self.layers) - 1 else 0
      x = layer(x, mask=mask[:, start:], bias=bias[:, start:], dropout=part)
    return self.decoder_norm(x)

  def _logits(self, x):
    return self.token_embedder.attend(x)
