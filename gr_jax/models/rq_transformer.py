"""RQ-Transformer: one transformer over items, a small one over an item's codes.

Lee et al. 2022 (arXiv:2203.01941, section 3.2.2), made for the residual codes
of images: an item of the history enters as the sum of its codes' embeddings,
a causal transformer runs over items, and a second one, of few layers, writes
the next item's codes one by one from the first one's output. A history is L
times shorter than in tokens, and every item of it can be a target of the same
pass (`task.augmentation="sequences"`), so that an epoch costs a fraction of
the encoder-decoder's.

Where an ID's last code is the item's own number (`sparse_id`), the number can
also be predicted at once (`direct_codes`): a second way to the same item beside
the one through its codes, as LIGER joins generation and dense retrieval (Yang
et al. 2024, arXiv:2411.18814). An item's probability is then the mean of both.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from gr_jax.core import checks
from gr_jax.models import attention, decoder_only, item_sequences, layers
from gr_jax.models import config as config_lib
from gr_jax.models import dropout as dropout_lib
from gr_jax.models import encoder_decoder as encdec
from gr_jax.models.dropout import after, drop, sites


class ItemEncoder(nn.Module):
  """The transformer over items: what a user wants after each of them."""

  config: config_lib.T5Config

  def setup(self):
    """Declares embedding, position bias, layers and the last norm."""
    cfg = self.config
    self.token_embedder = layers.Embedding(
      cfg.vocab_size, cfg.emb_dim, cfg.activation_dtype, scaled=True
    )
    self.relpos_bias = attention.RelativePositionBias(cfg, bidirectional=False)
    self.layers = [
      decoder_only.Layer(cfg) for _ in range(cfg.num_encoder_layers)
    ]
    self.encoder_norm = encdec.norm(cfg)

  def __call__(
    self,
    items: Int[Array, "B H L"],
    mask: Bool[Array, "B H H"],
    dropout: dropout_lib.Dropout | None,
  ) -> Float[Array, "B H E"]:
    """Returns the hidden state after each item."""
    places = range(items.shape[1])
    bias = self.relpos_bias(places, places)
    x = jnp.sum(self.token_embedder(items), axis=2)
    x = drop(dropout, 0, x)
    x = decoder_only.run_layers(
      self.layers, x, mask=mask, bias=bias, dropout=after(dropout, 2)
    )
    return drop(dropout, 1, self.encoder_norm(x))


class CodeDecoder(nn.Module):
  """The transformer over one item's codes, given what the user wants."""

  config: config_lib.T5Config
  code_ranges: item_sequences.CodeRanges
  direct_codes: int

  def setup(self):
    """Declares embedding, position bias, layers, the last norm and the head."""
    cfg = self.config
    self.token_embedder = layers.Embedding(
      cfg.vocab_size, cfg.emb_dim, cfg.activation_dtype, scaled=True
    )
    self.relpos_bias = attention.RelativePositionBias(cfg, bidirectional=False)
    self.layers = [
      decoder_only.Layer(cfg) for _ in range(cfg.num_decoder_layers)
    ]
    self.decoder_norm = encdec.norm(cfg)
    if not cfg.logits_via_embedding:
      self.logits_dense = layers.Dense(
        cfg.emb_dim, cfg.vocab_size, truncated=True
      )

  def __call__(
    self,
    context: Float[Array, "M 1 E"],
    tokens: Int[Array, "M L"],
    dropout: dropout_lib.Dropout | None,
  ) -> tuple[Float[Array, "M _"], ...]:
    """Returns `LevelLogits` without P; the first token is 0."""
    length = tokens.shape[1]
    bias = self.relpos_bias(range(length), range(length))
    mask = jnp.asarray(attention.causal_mask(length))
    mask = jnp.broadcast_to(mask, (tokens.shape[0], length, length))
    x = drop(dropout, 0, self._embed(context, tokens))
    x = decoder_only.run_layers(
      self.layers, x, mask=mask, bias=bias, dropout=after(dropout, 2)
    )
    x = drop(dropout, 1, self.decoder_norm(x))
    logits = [
      self._logits(x[:, level], codes)
      for level, codes in enumerate(self.code_ranges)
    ]
    if self.direct_codes:
      logits.append(self._logits(x[:, 0], self._direct_range))
    return tuple(logits)

  def direct(self, context: Float[Array, "B 1 E"]) -> Float[Array, "B _"]:
    """Returns the direct path's logits."""
    bias = self.relpos_bias(range(1), range(1))
    x = self._embed(context, jnp.zeros(context.shape[:2], jnp.int32))
    mask = jnp.ones((context.shape[0], 1, 1), bool)
    x = decoder_only.run_layers(
      self.layers, x, mask=mask, bias=bias, dropout=None
    )
    return self._logits(self.decoder_norm(x)[:, 0], self._direct_range)

  def step(
    self,
    context: Float[Array, "B 1 E"],
    tokens: Int[Array, "B W"],
    cache: encdec.Cache,
    *,
    level: int,
  ) -> tuple[Float[Array, "B W K"], encdec.Cache]:
    """Returns the level's logits after one more token a beam, and the cache."""
    bias = self.relpos_bias(range(level, level + 1), range(level + 1))
    x = self._embed(context, tokens)
    new_cache = []
    for layer, layer_cache in zip(self.layers, cache, strict=True):
      x, layer_cache = layer.step(x, layer_cache, bias=bias, level=level)
      new_cache.append(layer_cache)
    x = self.decoder_norm(x)
    return self._logits(x, self.code_ranges[level]), tuple(new_cache)

  @property
  def _direct_range(self):
    return self.code_ranges[-1][0], self.direct_codes

  def _embed(self, context, tokens):
    x = self.token_embedder(tokens)
    return x + jnp.broadcast_to(context, x.shape)

  def _logits(self, x, codes):
    first, count = codes
    if self.config.logits_via_embedding:
      return self.token_embedder.attend(x, (first, count))
    kernel = self.logits_dense.kernel[:, first : first + count]
    return jnp.dot(x.astype(jnp.float32), kernel)


class RQTransformer(nn.Module):
  """The generators' interface over `ItemEncoder` and `CodeDecoder`.

  `num_encoder_layers` counts the layers over items, `num_decoder_layers`
  those over codes. Items have L tokens each. Where a token stands says which
  level it is of, so that its logits and its probability are over the level's
  own codes; a softmax over all tokens would learn to give the others nothing.

  >>> import jax, jax.numpy as jnp
  >>> from gr_jax.models import RQTransformer, T5Config
  >>> config = T5Config(vocab_size=10, emb_dim=8, mlp_dim=8)
  >>> model = RQTransformer(config, code_ranges=((2, 3), (5, 4)))
  >>> inputs = jnp.array([[2, 5, 2, 6, 1, 0, 0]])  # two items and EOS
  >>> tokens = jnp.array([[0, 2]])
  >>> params = model.init(jax.random.key(0), inputs, tokens)["params"]
  >>> logits = model.apply({"params": params}, inputs, tokens)
  >>> [level.shape for level in logits]
  [(1, 1, 3), (1, 1, 4)]
  """

  config: config_lib.T5Config
  code_ranges: item_sequences.CodeRanges  # of the L levels
  # How many of the last level's codes, from the first on, the direct path
  # predicts: numbers of items to come cannot be learned. 0 for no such path.
  direct_codes: int = 0

  packs: ClassVar[bool] = True
  reads_items: ClassVar[bool] = True

  def setup(self):
    """Declares the two transformers.

    Raises:
      InputError: Codes that are no tokens of the config's, or more direct
        ones than the last level has.
    """
    item_sequences.check_ranges(self.code_ranges, self.config.vocab_size)
    if not 0 <= self.direct_codes <= self.code_ranges[-1][1]:
      raise checks.InputError(
        f"direct_codes={self.direct_codes} must lie between 0 and the last "
        f"level's {self.code_ranges[-1][1]} codes."
      )
    self.encoder = ItemEncoder(self.config)
    self.decoder = CodeDecoder(self.config, self.code_ranges, self.direct_codes)

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
      decoder_inputs: The codes of one next item shifted right, T = L; or of
        the item after each of the inputs', T = H L. The first token of an
        item is not read.
      deterministic: Whether dropout is off; else a "dropout" stream is drawn.
      dropout_rate: Overrides the config's rate; may be a traced scalar.
      input_segment_ids: Packed rows only: number of the example each input
        token belongs to.
      decoder_segment_ids: Likewise; must agree with the inputs'.

    Returns:
      L arrays [B, P, K_l]: of the codes of level l of each of P items,
      T = P L; with a direct path one more, of `direct_codes`.

    Raises:
      InputError: Batch sizes differ, or T fits neither form.
    """
    encdec.check_batch(inputs, decoder_inputs)
    del decoder_segment_ids  # targets stand where their history's item does
    num_levels = len(self.code_ranges)
    items = item_sequences.split_items(inputs, num_levels)
    num_targets = item_sequences.count_targets(
      decoder_inputs, items, num_levels
    )
    item_dropout, code_dropout = self._dropout(deterministic, dropout_rate)
    mask = item_sequences.item_mask(items, input_segment_ids)
    hidden = self.encoder(items, mask, item_dropout)
    if num_targets == 1:
      hidden = item_sequences.newest(hidden, items)
    tokens = decoder_inputs.reshape(-1, num_levels)
    # Nothing of the item before may be read where an item begins.
    is_first = jnp.arange(num_levels, dtype=jnp.int32) == 0
    tokens = jnp.where(is_first[None], 0, tokens)
    context = hidden[:, :num_targets].reshape(-1, 1, self.config.emb_dim)
    logits = self.decoder(context, tokens, code_dropout)
    return tuple(own.reshape(-1, num_targets, own.shape[-1]) for own in logits)

  def encode(self, inputs: Int[Array, "B S"]) -> Float[Array, "B 1 E"]:
    """Returns the hidden state after the newest item."""
    items = item_sequences.split_items(inputs, len(self.code_ranges))
    return item_sequences.newest(
      self.encoder(items, item_sequences.item_mask(items), None), items
    )

  def score(
    self, inputs: Int[Array, "B S"], targets: Int[Array, "B T"]
  ) -> Float[Array, " B"]:
    """Returns log p(targets | inputs) of one item, all paths taken."""
    logits = self(inputs, encdec.shift_right(targets))
    return item_sequences.log_likelihood(logits, targets, self.code_ranges)

  def direct_log_probs(
    self, encoded: Float[Array, "B 1 E"]
  ) -> Float[Array, "B K"]:
    """Returns the direct path's log-probabilities of the last level's codes.

    Those that it does not predict have -inf.
    """
    log_probs = jax.nn.log_softmax(self.decoder.direct(encoded))
    absent = self.code_ranges[-1][1] - self.direct_codes
    return jnp.pad(log_probs, ((0, 0), (0, absent)), constant_values=-jnp.inf)

  def start_decode(
    self, encoded: Float[Array, "B 1 E"], inputs: Int[Array, "B S"]
  ) -> encdec.DecodeContext:
    """Returns what all beams and levels of a user share."""
    return encdec.DecodeContext(
      memory=encoded, mask=attention.padding_mask(inputs)
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
  ) -> tuple[Float[Array, "B W K"], encdec.Cache]:
    """Feeds one token per beam; equals `__call__` at level `level`.

    Raises:
      InputError: The cache has no room for `level` or holds other beams.
    """
    encdec.check_step(tokens, cache, level)
    return self.decoder.step(context.memory, tokens, cache, level=level)

  def _dropout(self, deterministic, rate):
    if deterministic:
      return None, None
    cfg = self.config
    counts = [
      2 + decoder_only.LAYER_SITES * count
      for count in (cfg.num_encoder_layers, cfg.num_decoder_layers)
    ]
    dropout = dropout_lib.start(
      self.make_rng("dropout"),
      rate=cfg.dropout_rate if rate is None else rate,
      num_sites=sum(counts),
      shared=cfg.dropout_shared,
    )
    return sites(dropout, 0, counts[0]), sites(dropout, *counts)
