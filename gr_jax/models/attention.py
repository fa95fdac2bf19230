"""T5 attention: relative position bias, masks, dense and cached attention."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from gr_jax.core import lookup
from gr_jax.models import config as config_lib
from gr_jax.models import dropout as dropout_lib
from gr_jax.models import layers, softmax_kernel

MASKED = softmax_kernel.MASKED


@struct.dataclass
class Products:
  """Kernels of a layer that forms no keys and values, in its dtype."""

  to_memory: Any  # query key^T [E, A E]
  from_memory: Any  # value out [A E, E]


@struct.dataclass
class KeysValues:
  """Keys and values of one layer, heads in the second to last axis."""

  # Any, not jax.Array: shapes, shardings and axes travel in this tree too.
  key: Any  # [B, S, A, Dh], or [B, W, T, A, Dh] in a cache of beams
  value: Any  # like key


def relative_position_bucket(
  relative_position: Int[np.ndarray, "..."],
  *,
  bidirectional: bool,
  num_buckets: int,
  max_distance: int,
) -> Int[np.ndarray, "..."]:
  """Maps key position minus query position to a bucket, on the host.

  arXiv:1910.10683, section 2.1: half of the buckets hold one distance each,
  the other half grow logarithmically up to `max_distance`, beyond which all
  distances share the last one. Bidirectional attention splits the buckets
  between keys at or before the query and keys after it; otherwise keys after
  the query count as distance 0.

  Args:
    relative_position: Key position minus query position.
    bidirectional: Whether later keys have buckets of their own.
    num_buckets: Buckets in all.
    max_distance: Where the last bucket begins.

  Returns:
    int32 buckets in [0, num_buckets), shaped like the positions.
  """
  distance = -relative_position.astype(np.int64)
  offset = np.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    offset = (distance < 0) * num_buckets
    distance = np.abs(distance)
  else:
    distance = np.maximum(distance, 0)
  exact = num_buckets // 2
  # float32 and the epsilon are T5X's: bucket borders must fall alike.
  growth = np.log(
    distance.astype(np.float32) / exact + np.finfo(np.float32).eps
  ) / np.log(max_distance / exact)
  wide = exact + (growth * (num_buckets - exact)).astype(np.int64)
  wide = np.minimum(wide, num_buckets - 1)
  return (offset + np.where(distance < exact, distance, wide)).astype(np.int32)


class RelativePositionBias(nn.Module):
  """A learned number per head and bucket of relative position."""

  config: config_lib.T5Config
  bidirectional: bool

  def setup(self):
    """Declares rel_embedding [A, buckets]."""
    cfg = self.config
    self.rel_embedding = self.param(
      "rel_embedding",
      nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
      (cfg.num_heads, cfg.relpos_buckets),
      jnp.float32,
    )

  def __call__(
    self, query_positions: range, key_positions: range
  ) -> Float[Array, "A Q S"]:
    """Returns the float32 bias of every query and key position."""
    relative = (
      np.array(key_positions)[None, :] - np.array(query_positions)[:, None]
    )
    buckets = relative_position_bucket(
      relative,
      bidirectional=self.bidirectional,
      num_buckets=self.config.relpos_buckets,
      max_distance=self.config.relpos_max_distance,
    )
    bias = lookup.lookup(self.rel_embedding.T, jnp.asarray(buckets))
    return jnp.transpose(bias, (2, 0, 1))


def padding_mask(tokens: Int[Array, "B S"]) -> Bool[Array, "B 1 S"]:
  """True where a key may be attended to: everywhere but on padding."""
  return (tokens != 0)[:, None, :]


def causal_mask(length: int) -> Bool[np.ndarray, "1 T T"]:
  """True where the key is not later than the query."""
  return np.tril(np.ones((1, length, length), bool))


def segment_mask(
  query_segments: Int[Array, "B Q"], key_segments: Int[Array, "B S"]
) -> Bool[Array, "B Q S"]:
  """True where query and key belong to the same packed example."""
  return query_segments[:, :, None] == key_segments[:, None, :]


class Attention(nn.Module):
  """Multi-head attention with T5's scaling, which lives in the initial query.

  Logits are not divided by sqrt(Dh); the query kernel starts that much
  smaller instead, as in T5X.

  Where a head is at least half as wide as the model, keys and values are
  never formed: q k^T = (x Wq Wk^T) m^T and (P v) Wo = (P m) Wv Wo, head by
  head. That costs no more arithmetic, and what it saves is memory traffic,
  which bounds small networks: the transposes that bring heads to the front,
  and in cross-attention the keys and values of every decoder layer.
  """

  config: config_lib.T5Config

  def setup(self):
    """Declares query, key, value [E, A Dh] and out [A Dh, E]."""
    cfg = self.config
    dtype = cfg.activation_dtype
    self.query = layers.Dense(
      cfg.emb_dim, cfg.joined_dim, dtype, init_scale=cfg.head_dim**-0.5
    )
    self.key = layers.Dense(cfg.emb_dim, cfg.joined_dim, dtype)
    self.value = layers.Dense(cfg.emb_dim, cfg.joined_dim, dtype)
    self.out = layers.Dense(cfg.joined_dim, cfg.emb_dim, dtype)

  def __call__(
    self,
    x: Float[Array, "B Q E"],
    memory: Float[Array, "B S E"],
    *,
    mask: Bool[Array, "#B #Q S"] | Bool[np.ndarray, "#B #Q S"] | None = None,
    bias: Float[Array, "A Q S"] | None = None,
    dropout: dropout_lib.Dropout | None = None,
    products: Products | None = None,
  ) -> Float[Array, "B Q E"]:
    """Attends from x to memory (x itself in self-attention).

    Args:
      x: Where queries come from.
      memory: Where keys and values come from.
      mask: True where a query may see a key; None when it sees all.
      bias: Added to the logits.
      dropout: Drops attention weights, at one site.
      products: This layer's, from `kernel_products`; None computes them.

    Returns:
      The heads' outputs through `out`, in the config's dtype.
    """
    if self.is_unprojected:
      products = products or kernel_products([self])[0]
      return self._attend_unprojected(x, memory, mask, bias, dropout, products)
    query = self._split(self.query(x))  # [B, Q, A, Dh]
    memory = self.project(memory)
    weights = _weights(query, memory.key, mask=mask, bias=bias)
    value = memory.value
    if dropout is not None and dropout.shared:
      # One mask for all queries: scaling V's rows is the same, and smaller.
      scale = dropout.scale(0, (*value.shape[:3], 1), value.dtype)
      value = value * jnp.broadcast_to(scale, value.shape)
    elif dropout is not None:
      weights = weights * dropout.scale(0, weights.shape, weights.dtype)
    heads = jnp.einsum("baqs,bsad->bqad", weights, value)
    return self.out(self._join(heads))

  @property
  def is_unprojected(self) -> bool:
    """Whether `__call__` forms no keys and values."""
    return self.config.emb_dim <= 2 * self.config.head_dim

  def _attend_unprojected(self, x, memory, mask, bias, dropout, products):
    """Attends with queries and outputs in the memory's own space."""
    cfg = self.config
    batch, num_queries, width = x.shape
    rows = num_queries * cfg.num_heads
    x = jnp.dot(x, products.to_memory)
    logits = jnp.einsum("bge,bse->bgs", x.reshape(batch, rows, width), memory)
    logits = logits.reshape(batch, num_queries, cfg.num_heads, -1)
    if bias is not None:
      bias = jnp.transpose(bias, (1, 0, 2))  # [Q, A, S]
    weights = _dropped_weights(logits, mask, bias, dropout)
    mixed = jnp.einsum("bgs,bse->bge", weights.reshape(batch, rows, -1), memory)
    mixed = mixed.reshape(batch, num_queries, -1)  # [B, Q, A E]
    return jnp.dot(mixed, products.from_memory)

  def project(self, memory: Float[Array, "B S E"]) -> KeysValues:
    """Returns the keys and values of memory, [B, S, A, Dh] each."""
    return KeysValues(
      self._split(self.key(memory)), self._split(self.value(memory))
    )

  def attend_memory(
    self,
    x: Float[Array, "B W E"],
    memory: KeysValues,
    mask: Bool[Array, "B 1 S"],
  ) -> Float[Array, "B W E"]:
    """Attends from W beams of a user to that user's stored keys and values.

    Beams are queries: nothing of `memory` is copied per beam.
    """
    query = self._split(self.query(x))  # [B, W, A, Dh]
    weights = _weights(query, memory.key, mask=mask, bias=None)
    heads = jnp.einsum("baqs,bsad->bqad", weights, memory.value)
    return self.out(self._join(heads))

  def attend_cache(
    self,
    x: Float[Array, "B W E"],
    cache: KeysValues,
    bias: Float[Array, "A 1 T"],
    *,
    level: int,
    prefix: KeysValues | None = None,
    prefix_mask: Bool[Array, "B 1 S"] | None = None,
    prefix_bias: Float[Array, "A 1 S"] | None = None,
  ) -> tuple[Float[Array, "B W E"], KeysValues]:
    """Adds each beam's new key and value, and attends to its own past.

    Args:
      x: The beams at the newest position.
      cache: Leaves [B, W, T_max, A, Dh], positions < `level` filled.
      bias: Relative position bias to positions 0..level.
      level: Position of x, static.
      prefix: Keys and values all beams of a user share, placed before the
        cache (decoder-only models).
      prefix_mask: True where a prefix position is no padding.
      prefix_bias: Relative position bias to the prefix.

    Returns:
      The attention output and the cache with position `level` filled.
    """
    query = self._split(self.query(x))  # [B, W, A, Dh]
    new = self.project(x)
    cache = KeysValues(
      cache.key.at[:, :, level].set(new.key),
      cache.value.at[:, :, level].set(new.value),
    )
    keys = cache.key[:, :, : level + 1]  # [B, W, T, A, Dh]
    values = cache.value[:, :, : level + 1]
    logits = jnp.einsum("bwad,bwtad->bawt", query, keys)
    logits = logits.astype(jnp.float32) + bias[None]
    if prefix is None:
      weights = nn.softmax(logits).astype(query.dtype)  # [B, A, W, T]
      heads = jnp.einsum("bawt,bwtad->bwad", weights, values)
      return self.out(self._join(heads)), cache
    before = _logits(query, prefix.key, mask=prefix_mask, bias=prefix_bias)
    weights = nn.softmax(jnp.concatenate([before, logits], axis=-1))
    weights = weights.astype(query.dtype)  # [B, A, W, S + T]
    length = before.shape[-1]
    heads = jnp.einsum("baws,bsad->bwad", weights[..., :length], prefix.value)
    heads += jnp.einsum("bawt,bwtad->bwad", weights[..., length:], values)
    return self.out(self._join(heads)), cache

  def _split(self, x):
    return x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)

  def _join(self, x):
    return x.reshape(*x.shape[:-2], self.config.joined_dim)


def kernel_products(
  attentions: Sequence[Attention],
) -> list[Products | None]:
  """Returns each layer's products; None of layers that form keys and values.

  All at once: they are small, and starting a GPU's kernel is most of its time.

  Args:
    attentions: Layers of one config.
  """
  if not any(each.is_unprojected for each in attentions):
    return [None] * len(attentions)
  cfg = attentions[0].config

  def stack(name, *shape):
    kernels = [getattr(each, name).kernel for each in attentions]
    return jnp.stack(kernels).reshape(-1, *shape)

  def split(products, *shape):
    products = products.astype(cfg.activation_dtype)
    parts = jax.lax.split(products, [1] * len(attentions))
    return [part.reshape(shape) for part in parts]

  width, heads = cfg.emb_dim, (cfg.num_heads, cfg.head_dim)
  query, key, value = (
    stack(name, width, *heads) for name in ("query", "key", "value")
  )
  out = stack("out", *heads, width)
  to_memory = jnp.einsum("nead,nfad->neaf", query, key)  # [n, E, A, E]
  from_memory = jnp.einsum("nead,nadf->naef", value, out)  # [n, A, E, E]
  return [
    Products(*pair)
    for pair in zip(
      split(to_memory, width, -1), split(from_memory, -1, width), strict=True
    )
  ]


def empty_cache(
  cfg: config_lib.T5Config, batch_size: int, max_length: int
) -> KeysValues:
  """Returns one layer's self-attention cache of a single beam, zeros."""
  shape = (batch_size, 1, max_length, cfg.num_heads, cfg.head_dim)
  zeros = jnp.zeros(shape, cfg.activation_dtype)
  return KeysValues(zeros, zeros)


def _logits(query, key, *, mask, bias):
  """Returns float32 [B, A, Q, S]; masked keys hold MASKED."""
  logits = jnp.einsum("bqad,bsad->baqs", query, key).astype(jnp.float32)
  if bias is not None:
    logits = logits + bias[None]
  if mask is not None:
    logits = jnp.where(jnp.asarray(mask)[:, None], logits, MASKED)
  return logits


def _weights(query, key, *, mask, bias):
  """Returns attention weights [B, A, Q, S] in the query's dtype."""
  logits = jnp.einsum("bqad,bsad->baqs", query, key)
  return masked_softmax(
    logits,
    None if bias is None else bias[None],
    None if mask is None else jnp.asarray(mask)[:, None],
  )


def _dropped_weights(logits, mask, bias, dropout):
  """Returns attention weights after dropout, in the logits' dtype.

  Args:
    logits: [B, Q, A, S].
    mask: bool [#B, #Q, S] or None.
    bias: float32 [Q, A, S] or None.
    dropout: Drops weights, at one site; None not.
  """
  mask = None if mask is None else jnp.asarray(mask)
  if softmax_kernel.is_usable(logits.shape[-1], logits.dtype):
    return softmax_kernel.weights(logits, bias, mask, dropout)
  weights = masked_softmax(
    logits,
    None if bias is None else bias[None],
    None if mask is None else mask[:, :, None],
  )
  if dropout is None:
    return weights
  shape = weights.shape
  if dropout.shared:
    shape = (shape[0], 1, *shape[2:])
  scale = dropout.scale(0, shape, weights.dtype)
  return weights * jnp.broadcast_to(scale, weights.shape)


def masked_softmax(
  logits: Float[Array, "*batch S"],
  bias: Float[Array, "..."] | None,
  mask: Bool[Array, "..."] | None,
) -> Float[Array, "*batch S"]:
  """Softmax over keys in float32, kept for its gradient in `logits`' dtype.

  Args:
    logits: In the activations' dtype.
    bias: Added to them; of the same rank.
    mask: False where a weight shall be 0; of the same rank.
  """
  ones = (1,) * logits.ndim
  bias = jnp.zeros(ones, jnp.float32) if bias is None else bias
  mask = jnp.ones(ones, bool) if mask is None else mask
  return _softmax(logits, bias, mask)


@jax.custom_vjp
def _softmax(logits, bias, mask):
  return _softmax_forward(logits, bias, mask)[0]


def _softmax_forward(logits, bias, mask):
  wide = jnp.where(mask, logits.astype(jnp.float32) + bias, MASKED)
  # Not exp(x - max) / sum: that would write the exponentials in float32, and
  # computing them twice costs nothing where memory is what is waited for.
  # The maximum goes first: a large logit less a large norm would be rounded.
  wide = wide - jnp.max(wide, axis=-1, keepdims=True)
  norm = jnp.log(jnp.sum(jnp.exp(wide), axis=-1, keepdims=True))
  weights = jnp.exp(wide - norm).astype(logits.dtype)
  # An array of no size carries the bias's shape to the backward pass.
  return weights, (weights, jnp.zeros((*bias.shape, 0), bias.dtype))


def _softmax_backward(saved, gradient):
  weights, like = saved
  p = weights.astype(jnp.float32)
  g = gradient.astype(jnp.float32)
  change = p * (g - jnp.sum(p * g, axis=-1, keepdims=True))
  # Behind the barrier the bias's sum reads what is written anyway.
  change = jax.lax.optimization_barrier(change.astype(weights.dtype))
  summed = [
    axis
    for axis, size in enumerate(like.shape[:-1])
    if size == 1 and change.shape[axis] != 1
  ]
  d_bias = jnp.sum(change.astype(like.dtype), axis=summed, keepdims=True)
  return change, d_bias, None


_softmax.defvjp(_softmax_forward, _softmax_backward)
