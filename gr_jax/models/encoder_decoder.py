"""A T5 1.1 encoder-decoder with an explicit decoding state.

`decode_step` feeds one token per beam and needs what `start_decode` and
`init_cache` return: what a user's beams share is held once per user
(DecodeContext), what a beam owns is held in a cache that a beam search may
reorder along its beam axis.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gr_jax.core import checks
from gr_jax.models import attention, layers
from gr_jax.models import config as config_lib
from gr_jax.models import dropout as dropout_lib
from gr_jax.models.dropout import drop, sites

Mask = Bool[Array, "..."] | Bool[np.ndarray, "..."]
Cache = tuple[attention.KeysValues, ...]

# Places where a layer drops: attention weights, MLP, each sublayer's output.
ENCODER_LAYER_SITES = 4
DECODER_LAYER_SITES = 6


@struct.dataclass
class DecodeContext:
  """What decoding needs of each user, independent of beams and levels."""

  memory: Any  # a KeysValues per layer, leaves [B, S, A, Dh]
  mask: Any  # bool [B, 1, S], False on padding


class EncoderLayer(nn.Module):
  """Self-attention and MLP, each behind a norm and beside a residual."""

  config: config_lib.T5Config

  def setup(self):
    """Declares the sublayers under T5X's names."""
    cfg = self.config
    self.pre_attention_layer_norm = norm(cfg)
    self.attention = attention.Attention(cfg)
    self.pre_mlp_layer_norm = norm(cfg)
    self.mlp = layers.MLP(cfg)

  def __call__(
    self,
    x: Float[Array, "B S E"],
    *,
    mask: Mask,
    bias: Float[Array, "A S S"],
    dropout: dropout_lib.Dropout | None,
    products: attention.Products | None,
  ) -> Float[Array, "B S E"]:
    """Returns the layer's output, dropping at ENCODER_LAYER_SITES sites."""
    y = self.pre_attention_layer_norm(x)
    y = self.attention(
      y,
      y,
      mask=mask,
      bias=bias,
      dropout=sites(dropout, 0, 1),
      products=products,
    )
    x = x + drop(dropout, 1, y)
    y = self.mlp(self.pre_mlp_layer_norm(x), sites(dropout, 2, 1))
    return x + drop(dropout, 3, y)


class DecoderLayer(nn.Module):
  """Self-attention, attention to the encoder, MLP."""

  config: config_lib.T5Config

  def setup(self):
    """Declares the sublayers under T5X's names."""
    cfg = self.config
    self.pre_self_attention_layer_norm = norm(cfg)
    self.self_attention = attention.Attention(cfg)
    self.pre_cross_attention_layer_norm = norm(cfg)
    self.encoder_decoder_attention = attention.Attention(cfg)
    self.pre_mlp_layer_norm = norm(cfg)
    self.mlp = layers.MLP(cfg)

  def __call__(
    self,
    x: Float[Array, "B T E"],
    encoded: Float[Array, "B S E"],
    *,
    mask: Mask,
    bias: Float[Array, "A T T"],
    cross_mask: Mask,
    dropout: dropout_lib.Dropout | None,
    products: tuple[attention.Products | None, attention.Products | None],
  ) -> Float[Array, "B T E"]:
    """Returns the layer's output, dropping at DECODER_LAYER_SITES sites."""
    y = self.pre_self_attention_layer_norm(x)
    y = self.self_attention(
      y,
      y,
      mask=mask,
      bias=bias,
      dropout=sites(dropout, 0, 1),
      products=products[0],
    )
    x = x + drop(dropout, 1, y)
    y = self.pre_cross_attention_layer_norm(x)
    y = self.encoder_decoder_attention(
      y,
      encoded,
      mask=cross_mask,
      dropout=sites(dropout, 2, 1),
      products=products[1],
    )
    x = x + drop(dropout, 3, y)
    y = self.mlp(self.pre_mlp_layer_norm(x), sites(dropout, 4, 1))
    return x + drop(dropout, 5, y)

  def step(
    self,
    x: Float[Array, "B W E"],
    cache: attention.KeysValues,
    memory: attention.KeysValues,
    *,
    bias: Float[Array, "A 1 T"],
    cross_mask: Bool[Array, "B 1 S"],
    level: int,
  ) -> tuple[Float[Array, "B W E"], attention.KeysValues]:
    """Returns the layer's output for one position of each beam, and cache."""
    y = self.pre_self_attention_layer_norm(x)
    y, cache = self.self_attention.attend_cache(y, cache, bias, level=level)
    x = x + y
    y = self.pre_cross_attention_layer_norm(x)
    x = x + self.encoder_decoder_attention.attend_memory(y, memory, cross_mask)
    return x + self.mlp(self.pre_mlp_layer_norm(x)), cache


class Encoder(nn.Module):
  """The encoder stack; the token embedding is handed in."""

  config: config_lib.T5Config

  def setup(self):
    """Declares the layers, one shared position bias and the last norm."""
    cfg = self.config
    self.relpos_bias = attention.RelativePositionBias(cfg, bidirectional=True)
    self.layers = [EncoderLayer(cfg) for _ in range(cfg.num_encoder_layers)]
    self.encoder_norm = norm(cfg)

  def __call__(
    self,
    x: Float[Array, "B S E"],
    *,
    mask: Mask,
    dropout: dropout_lib.Dropout | None,
  ) -> Float[Array, "B S E"]:
    """Returns the encoded inputs."""
    positions = range(x.shape[1])
    bias = self.relpos_bias(positions, positions)
    products = attention.kernel_products([x.attention for x in self.layers])
    x = drop(dropout, 0, x)
    for index, layer in enumerate(self.layers):
      first = 2 + ENCODER_LAYER_SITES * index
      part = sites(dropout, first, ENCODER_LAYER_SITES)
      x = layer(x, mask=mask, bias=bias, dropout=part, products=products[index])
    # The one place where T5X draws a mask per element.
    return drop(dropout, 1, self.encoder_norm(x), shared=False)


class Decoder(nn.Module):
  """The decoder stack and the untied output head."""

  config: config_lib.T5Config

  def setup(self):
    """Declares the layers, one shared position bias, last norm and head."""
    cfg = self.config
    self.relpos_bias = attention.RelativePositionBias(cfg, bidirectional=False)
    self.layers = [DecoderLayer(cfg) for _ in range(cfg.num_decoder_layers)]
    self.decoder_norm = norm(cfg)
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(
        cfg.emb_dim, cfg.vocab_size, truncated=True
      )

  def __call__(
    self,
    x: Float[Array, "B T E"],
    encoded: Float[Array, "B S E"],
    *,
    mask: Mask,
    cross_mask: Mask,
    dropout: dropout_lib.Dropout | None,
  ) -> Float[Array, "B T E"]:
    """Returns the last hidden states, before the head."""
    positions = range(x.shape[1])
    bias = self.relpos_bias(positions, positions)
    products = attention.kernel_products(
      [
        each
        for x in self.layers
        for each in (x.self_attention, x.encoder_decoder_attention)
      ]
    )
    x = drop(dropout, 0, x)
    for index, layer in enumerate(self.layers):
      first = 2 + DECODER_LAYER_SITES * index
      part = sites(dropout, first, DECODER_LAYER_SITES)
      x = layer(
        x,
        encoded,
        mask=mask,
        bias=bias,
        cross_mask=cross_mask,
        dropout=part,
        products=tuple(products[2 * index : 2 * index + 2]),
      )
    return drop(dropout, 1, self.decoder_norm(x))

  def start(
    self, encoded: Float[Array, "B S E"]
  ) -> tuple[attention.KeysValues, ...]:
    """Returns every layer's keys and values of the encoded inputs."""
    return tuple(
      layer.encoder_decoder_attention.project(encoded) for layer in self.layers
    )

  def step(
    self,
    x: Float[Array, "B W E"],
    cache: Cache,
    context: DecodeContext,
    *,
    level: int,
  ) -> tuple[Float[Array, "B W E"], Cache]:
    """Returns the last hidden states of one position, and the cache."""
    bias = self.relpos_bias(range(level, level + 1), range(level + 1))
    new_cache = []
    for layer, layer_cache, memory in zip(
      self.layers, cache, context.memory, strict=True
    ):
      x, layer_cache = layer.step(
        x,
        layer_cache,
        memory,
        bias=bias,
        cross_mask=context.mask,
        level=level,
      )
      new_cache.append(layer_cache)
    return self.decoder_norm(x), tuple(new_cache)


class EncoderDecoder(nn.Module):
  """The generator: token histories in, logits of the next item's tokens out.

  Token 0 is padding: no query attends to it, and adding it at the end of the
  inputs changes no result.

  >>> import jax, jax.numpy as jnp
  >>> from gr_jax.models import EncoderDecoder, T5Config
  >>> model = EncoderDecoder(T5Config(vocab_size=10, emb_dim=8, mlp_dim=8))
  >>> inputs = jnp.array([[5, 6, 1]])
  >>> tokens = jnp.array([[0, 5]])
  >>> params = model.init(jax.random.key(0), inputs, tokens)["params"]
  >>> model.apply({"params": params}, inputs, tokens).shape
  (1, 2, 10)
  """

  config: config_lib.T5Config

  packs: ClassVar[bool] = True  # takes rows of several examples
  reads_items: ClassVar[bool] = False  # one vector an item, not a token

  def setup(self):
    """Declares embedding, encoder and decoder under T5X's names."""
    cfg = self.config
    self.token_embedder = layers.Embedding(
      cfg.vocab_size, cfg.emb_dim, cfg.activation_dtype
    )
    self.encoder = Encoder(cfg)
    self.decoder = Decoder(cfg)

  def __call__(
    self,
    inputs: Int[Array, "B S"],
    decoder_inputs: Int[Array, "_ T"],
    *,
    deterministic: bool = True,
    dropout_rate: dropout_lib.Rate | None = None,
    input_segment_ids: Int[Array, "B S"] | None = None,
    decoder_segment_ids: Int[Array, "B T"] | None = None,
  ) -> Float[Array, "B T V"]:
    """Returns float32 logits of the token after each decoder input.

    Args:
      inputs: History tokens, 0 where padded.
      decoder_inputs: Targets shifted right, 0 first (see `shift_right`).
      deterministic: Whether dropout is off; else a "dropout" stream is drawn.
      dropout_rate: Overrides the config's rate; may be a traced scalar.
      input_segment_ids: Packed rows only: number of the example each input
        token belongs to. Relative positions need no other help.
      decoder_segment_ids: Likewise for decoder inputs.

    Raises:
      InputError: Batch sizes differ, or only one of the segment ids is given.
    """
    check_batch(inputs, decoder_inputs)
    if (input_segment_ids is None) != (decoder_segment_ids is None):
      raise checks.InputError(
        "Give input_segment_ids and decoder_segment_ids together, or neither."
      )
    dropout = self._start_dropout(deterministic, dropout_rate)
    encoded = self._encode(inputs, input_segment_ids, dropout)
    mask = attention.causal_mask(decoder_inputs.shape[1])
    cross_mask = attention.padding_mask(inputs)
    if decoder_segment_ids is not None:
      mask = mask & attention.segment_mask(
        decoder_segment_ids, decoder_segment_ids
      )
      cross_mask = cross_mask & attention.segment_mask(
        decoder_segment_ids, input_segment_ids
      )
    x = self.token_embedder(decoder_inputs)
    part = sites(dropout, self._encoder_sites, self._decoder_sites)
    x = self.decoder(x, encoded, mask=mask, cross_mask=cross_mask, dropout=part)
    return self._logits(x)

  def encode(
    self,
    inputs: Int[Array, "B S"],
    *,
    deterministic: bool = True,
    dropout_rate: dropout_lib.Rate | None = None,
    input_segment_ids: Int[Array, "B S"] | None = None,
  ) -> Float[Array, "B S E"]:
    """Returns the encoded inputs; values at padding carry no meaning."""
    dropout = self._start_dropout(deterministic, dropout_rate)
    return self._encode(inputs, input_segment_ids, dropout)

  def score(
    self, inputs: Int[Array, "B S"], targets: Int[Array, "B T"]
  ) -> Float[Array, " B"]:
    """Returns log p(targets | inputs), padding (0) in targets not counted."""
    return log_likelihood(self(inputs, shift_right(targets)), targets)

  def start_decode(
    self, encoded: Float[Array, "B S E"], inputs: Int[Array, "B S"]
  ) -> DecodeContext:
    """Returns what all beams and levels of a user share, computed once."""
    return DecodeContext(
      memory=self.decoder.start(encoded),
      mask=attention.padding_mask(inputs),
    )

  def init_cache(self, batch_size: int, max_length: int) -> Cache:
    """Returns an empty cache of one beam: leaves [B, 1, T, A, Dh].

    Needs no parameters: `model.init_cache(...)` works without `apply`.
    """
    return tuple(
      attention.empty_cache(self.config, batch_size, max_length)
      for _ in range(self.config.num_decoder_layers)
    )

  def decode_step(
    self,
    tokens: Int[Array, "B W"],
    cache: Cache,
    context: DecodeContext,
    *,
    level: int,
  ) -> tuple[Float[Array, "B W V"], Cache]:
    """Feeds one token per beam; equals `__call__` at position `level`.

    Args:
      tokens: Decoder inputs at position `level`: 0 at level 0, then the token
        each beam chose last.
      cache: Leaves [B, W, T, A, Dh] with the positions before `level` filled.
      context: From `start_decode`.
      level: Position, static; one compiled program per level.

    Returns:
      float32 logits of the next token, and the cache with this position.

    Raises:
      InputError: The cache has no room for `level` or holds other beams.
    """
    check_step(tokens, cache, level)
    x = self.token_embedder(tokens)
    x, cache = self.decoder.step(x, cache, context, level=level)
    return self._logits(x), cache

  @property
  def _encoder_sites(self):
    return 2 + ENCODER_LAYER_SITES * self.config.num_encoder_layers

  @property
  def _decoder_sites(self):
    return 2 + DECODER_LAYER_SITES * self.config.num_decoder_layers

  def _start_dropout(self, deterministic, rate):
    if deterministic:
      return None
    return dropout_lib.start(
      self.make_rng("dropout"),
      rate=self.config.dropout_rate if rate is None else rate,
      num_sites=self._encoder_sites + self._decoder_sites,
      shared=self.config.dropout_shared,
    )

  def _encode(self, inputs, segment_ids, dropout):
    mask = attention.padding_mask(inputs)
    if segment_ids is not None:
      mask = mask & attention.segment_mask(segment_ids, segment_ids)
    part = sites(dropout, 0, self._encoder_sites)
    return self.encoder(self.token_embedder(inputs), mask=mask, dropout=part)

  def _logits(self, x):
    if self.config.logits_via_embedding:
      return self.token_embedder.attend(x)
    return self.decoder.logits_dense(x)


def norm(cfg: config_lib.T5Config) -> layers.RMSNorm:
  """Returns a norm of the model's width."""
  return layers.RMSNorm(cfg.emb_dim, cfg.activation_dtype)


def log_likelihood(
  logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, " B"]:
  """Sums log p(target) over the targets that are not padding."""
  log_probs = jax.nn.log_softmax(logits)
  chosen = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)
  return jnp.sum(jnp.where(targets != 0, chosen[..., 0], 0.0), axis=-1)


def shift_right(
  targets: Int[Array, "*batch T"],
  segment_ids: Int[Array, "*batch T"] | None = None,
) -> Int[Array, "*batch T"]:
  """Returns decoder inputs: targets moved one position on, 0 first.

  Args:
    targets: Tokens.
    segment_ids: Packed rows only: the example that a token belongs to, each
      of which begins with 0.
  """
  pad = [(0, 0)] * (targets.ndim - 1) + [(1, 0)]
  shifted = jnp.pad(targets, pad)[..., :-1]
  if segment_ids is None:
    return shifted
  before = jnp.pad(segment_ids, pad)[..., :-1]
  return jnp.where(before == segment_ids, shifted, 0)


def check_batch(inputs: jax.Array, decoder_inputs: jax.Array) -> None:
  """Refuses inputs and decoder inputs of different batches.

  Raises:
    InputError: The batch sizes differ.
  """
  if inputs.shape[0] != decoder_inputs.shape[0]:
    raise checks.InputError(
      "inputs and decoder_inputs need one batch size; got "
      f"{inputs.shape[0]} and {decoder_inputs.shape[0]}."
    )


def check_step(tokens: jax.Array, cache: Cache, level: int) -> None:
  """Refuses a step that the cache cannot take.

  Raises:
    InputError: The cache has no room for `level` or holds other beams.
  """
  batch_size, num_beams, max_length = cache[0].key.shape[:3]
  if not 0 <= level < max_length:
    raise checks.InputError(
      f"Need 0 <= level < {max_length}, the cache's length; got {level}. "
      "Make a longer cache with init_cache."
    )
  if tokens.shape != (batch_size, num_beams):
    raise checks.InputError(
      f"tokens {tokens.shape} must match the cache's [B, W] = "
      f"{(batch_size, num_beams)}; re-gather the cache per beam."
    )
