"""A decoder-only generator behind the encoder-decoder's interface.

The history is a prefix that all beams of a user share: its keys and values
take the place of the encoder's. Inside, rows are shifted so that padding
stands in front; a position's distance to another is then the same in every
row, whatever the padding, and the position bias stays one small table.
"""

from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from gr_jax.models import attention, layers
from gr_jax.models import config as config_lib
from gr_jax.models import dropout as dropout_lib
from gr_jax.models import encoder_decoder as encdec
from gr_jax.models.dropout import drop, sites

# Places where a layer drops: attention weights, MLP, each sublayer's output.
LAYER_SITES = 4


class Layer(nn.Module):
  """Causal self-attention and MLP, each behind a norm."""

  config: config_lib.T5Config

  def setup(self):
    """Declares the sublayers under the names of T5X's decoder-only example."""
    cfg = self.config
    self.pre_self_attention_layer_norm = encdec.norm(cfg)
    self.self_attention = attention.Attention(cfg)
    self.pre_mlp_layer_norm = encdec.norm(cfg)
    self.mlp = layers.MLP(cfg)

  def __call__(
    self,
    x: Float[Array, "B S E"],
    *,
    mask: Bool[Array, "B Q S"],
    bias: Float[Array, "A Q S"],
    dropout: dropout_lib.Dropout | None,
  ) -> Float[Array, "B Q E"]:
    """Returns the output at the last Q positions, those of `mask`."""
    tail = x.shape[1] - mask.shape[1]
    memory = self.pre_self_attention_layer_norm(x)
    x = x[:, tail:]
    y = self.self_attention(
      memory[:, tail:],
      memory,
      mask=mask,
      bias=bias,
      dropout=sites(dropout, 0, 1),
    )
    x = x + drop(dropout, 1, y)
    y = self.mlp(self.pre_mlp_layer_norm(x), sites(dropout, 2, 1))
    return x + drop(dropout, 3, y)

  def memory(self, x: Float[Array, "B S E"]) -> attention.KeysValues:
    """Returns the keys and values that later positions attend to."""
    y = self.pre_self_attention_layer_norm(x)
    return self.self_attention.project(y)

  def step(
    self,
    x: Float[Array, "B W E"],
    cache: attention.KeysValues,
    prefix: attention.KeysValues | None = None,
    *,
    bias: Float[Array, "A 1 T"],
    prefix_bias: Float[Array, "A 1 S"] | None = None,
    prefix_mask: Bool[Array, "B 1 S"] | None = None,
    level: int,
  ) -> tuple[Float[Array, "B W E"], attention.KeysValues]:
    """Returns the layer's output for one position of each beam, and cache."""
    y = self.pre_self_attention_layer_norm(x)
    y, cache = self.self_attention.attend_cache(
      y,
      cache,
      bias,
      level=level,
      prefix=prefix,
      prefix_mask=prefix_mask,
      prefix_bias=prefix_bias,
    )
    x = x + y
    return x + self.mlp(self.pre_mlp_layer_norm(x)), cache


def run_layers(
  stack: Sequence[Layer],
  x: Float[Array, "B S E"],
  *,
  mask: Bool[Array, "B S S"],
  bias: Float[Array, "A S S"],
  dropout: dropout_lib.Dropout | None,
) -> Float[Array, "B S E"]:
  """Runs layers one after the other; each takes `LAYER_SITES` of `dropout`."""
  for index, layer in enumerate(stack):
    part = sites(dropout, LAYER_SITES * index, LAYER_SITES)
    x = layer(x, mask=mask, bias=bias, dropout=part)
  return x


class Stack(nn.Module):
  """Embedding, layers and head: all parameters of the network."""

  config: config_lib.T5Config

  def setup(self):
    """Declares the parts under the names of T5X's decoder-only example."""
    cfg = self.config
    self.token_embedder = layers.Embedding(
      cfg.vocab_size, cfg.emb_dim, cfg.activation_dtype
    )
    self.relpos_bias = attention.RelativePositionBias(cfg, bidirectional=False)
    self.layers = [Layer(cfg) for _ in range(cfg.num_decoder_layers)]
    self.decoder_norm = encdec.norm(cfg)
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(
        cfg.emb_dim, cfg.vocab_size, truncated=True
      )

  def __call__(
    self,
    tokens: Int[Array, "B S"],
    is_token: Bool[Array, "B S"],
    *,
    num_outputs: int,
    dropout: dropout_lib.Dropout | None,
  ) -> Float[Array, "B T V"]:
    """Returns logits at the last `num_outputs` positions.

    The last layer runs at those alone: nobody reads the others.
    """
    length = tokens.shape[1]
    mask = is_token[:, None, :] & attention.causal_mask(length)
    positions = range(length)
    bias = self.relpos_bias(positions, positions)
    x = drop(dropout, 0, self.token_embedder(tokens))
    last = len(self.layers) - 1
    for index, layer in enumerate(self.layers):
      start = length - num_outputs if index == last else 0
      x = layer(
        x,
        mask=mask[:, start:],
        bias=bias[:, start:],
        dropout=sites(dropout, 2 + LAYER_SITES * index, LAYER_SITES),
      )
    return self.logits(drop(dropout, 1, self.decoder_norm(x)))

  def embed(self, tokens: Int[Array, "B S"]) -> Float[Array, "B S E"]:
    """Looks tokens up."""
    return self.token_embedder(tokens)

  def start(
    self, x: Float[Array, "B S E"], is_token: Bool[Array, "B S"]
  ) -> tuple[attention.KeysValues, ...]:
    """Returns every layer's keys and values of the embedded prefix."""
    length = x.shape[1]
    mask = is_token[:, None, :] & attention.causal_mask(length)
    bias = self.relpos_bias(range(length), range(length))
    memory = []
    for index, layer in enumerate(self.layers):
      memory.append(layer.memory(x))
      if index + 1 < len(self.layers):
        x = layer(x, mask=mask, bias=bias, dropout=None)
    return tuple(memory)

  def step(
    self,
    tokens: Int[Array, "B W"],
    cache: encdec.Cache,
    context: encdec.DecodeContext,
    *,
    level: int,
  ) -> tuple[Float[Array, "B W V"], encdec.Cache]:
    """Returns logits after one more token of each beam, and the cache."""
    prefix_length = context.mask.shape[-1]
    now = range(prefix_length + level, prefix_length + level + 1)
    bias = self.relpos_bias(now, range(prefix_length + level + 1))
    x = self.token_embedder(tokens)
    new_cache = []
    for layer, layer_cache, prefix in zip(
      self.layers, cache, context.memory, strict=True
    ):
      x, layer_cache = layer.step(
        x,
        layer_cache,
        prefix,
        bias=bias[..., prefix_length:],
        prefix_bias=bias[..., :prefix_length],
        prefix_mask=context.mask,
        level=level,
      )
      new_cache.append(layer_cache)
    return self.logits(self.decoder_norm(x)), tuple(new_cache)

  def logits(self, x: Float[Array, "B T E"]) -> Float[Array, "B T V"]:
    """Applies the head, float32."""
    if self.config.logits_via_embedding:
      return self.token_embedder.attend(x)
    return self.logits_dense(x)


class DecoderOnly(nn.Module):
  """A causal language model over [history, 0, next item's tokens].

  The methods, their arguments and results are those of `EncoderDecoder`, so
  training and beam search take either; `num_encoder_layers` is not read.
  Packed rows are not supported.

  >>> import jax, jax.numpy as jnp
  >>> from gr_jax.models import DecoderOnly, T5Config
  >>> model = DecoderOnly(T5Config(vocab_size=10, emb_dim=8, mlp_dim=8))
  >>> inputs = jnp.array([[5, 6, 1]])
  >>> tokens = jnp.array([[0, 5]])
  >>> params = model.init(jax.random.key(0), inputs, tokens)["params"]
  >>> model.apply({"params": params}, inputs, tokens).shape
  (1, 2, 10)
  """

  config: config_lib.T5Config

  packs: ClassVar[bool] = False
  reads_items: ClassVar[bool] = False

  def setup(self):
    """Declares the stack as `decoder`, where T5X has it."""
    self.decoder = Stack(self.config)

  def __call__(
    self,
    inputs: Int[Array, "B S"],
    decoder_inputs: Int[Array, "_ T"],
    *,
    deterministic: bool = True,
    dropout_rate: dropout_lib.Rate | None = None,
  ) -> Float[Array, "B T V"]:
    """Returns float32 logits of the token after each decoder input.

    Args:
      inputs: History tokens, 0 where padded (at the end).
      decoder_inputs: Targets shifted right, 0 first (see `shift_right`).
      deterministic: Whether dropout is off; else a "dropout" stream is drawn.
      dropout_rate: Overrides the config's rate; may be a traced scalar.

    Raises:
      InputError: Batch sizes differ.
    """
    encdec.check_batch(inputs, decoder_inputs)
    dropout = None
    if not deterministic:
      cfg = self.config
      dropout = dropout_lib.start(
        self.make_rng("dropout"),
        rate=cfg.dropout_rate if dropout_rate is None else dropout_rate,
        num_sites=2 + LAYER_SITES * cfg.num_decoder_layers,
        shared=cfg.dropout_shared,
      )
    prefix = align_right(inputs)
    # Decoder inputs count even where they are 0: the first one always is.
    is_token = jnp.concatenate(
      [prefix != 0, jnp.ones(decoder_inputs.shape, bool)], axis=1
    )
    return self.decoder(
      jnp.concatenate([prefix, decoder_inputs], axis=1),
      is_token,
      num_outputs=decoder_inputs.shape[1],
      dropout=dropout,
    )

  def encode(self, inputs: Int[Array, "B S"]) -> Float[Array, "B S E"]:
    """Returns the embedded history, for `start_decode`."""
    return self.decoder.embed(align_right(inputs))

  def score(
    self, inputs: Int[Array, "B S"], targets: Int[Array, "B T"]
  ) -> Float[Array, " B"]:
    """Returns log p(targets | inputs), padding (0) in targets not counted."""
    logits = self(inputs, encdec.shift_right(targets))
    return encdec.log_likelihood(logits, targets)

  def start_decode(
    self, encoded: Float[Array, "B S E"], inputs: Int[Array, "B S"]
  ) -> encdec.DecodeContext:
    """Runs the history once per user and keeps its keys and values."""
    is_token = align_right(inputs) != 0
    return encdec.DecodeContext(
      memory=self.decoder.start(encoded, is_token),
      mask=is_token[:, None, :],
    )

  def init_cache(self, batch_size: int, max_length: int) -> encdec.Cache:
    """Returns an empty cache of one beam: leaves [B, 1, T, A, Dh]."""
    return tuple(
      attention.empty_cache(self.config, batch_size, max_length)
      for _ in range(self.config.num_decoder_layers)
    )

  def decode_step(
    self,
    tokens: Int[Array, "B W"],
    cache: encdec.Cache,
    context: encdec.DecodeContext,
    *,
    level: int,
  ) -> tuple[Float[Array, "B W V"], encdec.Cache]:
    """Feeds one token per beam; equals `__call__` at position `level`.

    Raises:
      InputError: The cache has no room for `level` or holds other beams.
    """
    encdec.check_step(tokens, cache, level)
    return self.decoder.step(tokens, cache, context, level=level)


def align_right(
  tokens: Int[Array, "B S"] | Int[np.ndarray, "B S"],
) -> Int[Array, "B S"]:
  """Moves each row's trailing padding to its front."""
  length = tokens.shape[1]
  places = jnp.arange(length, dtype=jnp.int32)
  is_token = jnp.asarray(tokens) != 0
  used = jnp.max(jnp.where(is_token, places[None] + 1, 0), axis=1)  # [B]
  source = (places[None, :] + used[:, None]) % length
  return jnp.take_along_axis(jnp.asarray(tokens), source, axis=1)
