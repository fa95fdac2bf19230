"""Other ways to compute the generator's training step, for measuring.

`apply(names)` swaps parts of `gr_jax.models` for the named alternatives; all
compute the same function as the library up to rounding. What measures better
belongs into the library, and its row here goes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from gr_jax.models import attention, config, layers
from gr_jax.models import dropout as dropout_lib
from gr_jax.models import encoder_decoder as encdec

MASKED = attention.MASKED
INTERPRET = False  # run Pallas kernels on a CPU, to check them


# --- softmax that saves its weights in the activations' dtype


def _weights(logits, bias, mask):
  """Weights in the logits' dtype; bias may be None."""
  if bias is None:
    bias = jnp.zeros((1,) * logits.ndim, jnp.float32)
  return _cast_weights(logits, bias, jnp.asarray(mask))


@jax.custom_vjp
def _cast_weights(logits, bias, mask):
  return _weights_fwd(logits, bias, mask)[0]


def _weights_fwd(logits, bias, mask):
  wide = jnp.where(mask, logits.astype(jnp.float32) + bias, MASKED)
  weights = jax.nn.softmax(wide, axis=-1).astype(logits.dtype)
  return weights, (weights, bias)


def _weights_bwd(saved, gradient):
  weights, bias = saved
  p = weights.astype(jnp.float32)
  g = gradient.astype(jnp.float32)
  d = p * (g - jnp.sum(p * g, axis=-1, keepdims=True))
  summed = [i for i, n in enumerate(bias.shape) if n == 1 and d.shape[i] != 1]
  d_bias = jnp.sum(d, axis=summed, keepdims=True)
  return d.astype(weights.dtype), d_bias.astype(bias.dtype), None


_cast_weights.defvjp(_weights_fwd, _weights_bwd)


# --- attention


def _qkv(module, x):
  """One matmul for queries, keys and values: [B, S, 3, A, Dh]."""
  cfg = module.config
  kernel = jnp.concatenate(
    [module.query.kernel, module.key.kernel, module.value.kernel], axis=1
  )
  out = jnp.dot(x, kernel.astype(x.dtype))
  return out.reshape(*x.shape[:2], 3, cfg.num_heads, cfg.head_dim)


def _scale(drop, batch, length, heads, dtype):
  """Attention dropout shared by queries, [B, S, A, 1]; None for none."""
  if drop is None:
    return None
  if not drop.shared:
    raise NotImplementedError("per-element attention dropout")
  return drop.scale(0, (batch, length, heads, 1), dtype)


class FusedQKV(attention.Attention):
  """One projection; weights saved in bfloat16; dropout folded into V."""

  def __call__(self, x, memory, *, mask=None, bias=None, dropout=None):
    """Attends from x to memory."""
    if x is not memory:
      return CROSS[0](self, x, memory, mask, bias, dropout)
    qkv = _qkv(self, x)
    q, k, v = (qkv[:, :, i] for i in range(3))
    scale = _scale(dropout, *k.shape[:3], k.dtype)
    if scale is not None:
      v = v * jnp.broadcast_to(scale, v.shape)
    logits = jnp.einsum("bqad,bsad->baqs", q, k)
    weights = _weights(
      logits, None if bias is None else bias[None], jnp.asarray(mask)[:, None]
    )
    heads = jnp.einsum("baqs,bsad->bqad", weights, v)
    return self.out(self._join(heads))


class CuDNN(attention.Attention):
  """cuDNN's fused attention on [B, S, A, Dh], padding by lengths."""

  def __call__(self, x, memory, *, mask=None, bias=None, dropout=None):
    """Attends from x to memory."""
    if x is not memory or x.shape[1] < 16:
      return CROSS[0](self, x, memory, mask, bias, dropout)
    qkv = _qkv(self, x)
    q, k, v = (qkv[:, :, i] for i in range(3))
    scale = _scale(dropout, *k.shape[:3], k.dtype)
    if scale is not None:
      v = v * jnp.broadcast_to(scale, v.shape)
    lengths = jnp.maximum(jnp.sum(mask[:, 0], axis=-1, dtype=jnp.int32), 1)
    heads = jax.nn.dot_product_attention(
      q,
      k,
      v,
      bias=bias[None].astype(q.dtype),
      scale=1.0,
      query_seq_lengths=jnp.full_like(lengths, q.shape[1]),
      key_value_seq_lengths=lengths,
      implementation="cudnn",
    )
    return self.out(self._join(heads))


def _plain_cross(self, x, memory, mask, bias, drop):
  return attention_call(self, x, memory, mask=mask, bias=bias, dropout=drop)


attention_call = attention.Attention.__call__


def _absorbed(self, x, memory, mask, bias, drop):
  """Attention on the raw memory: keys and values are never formed.

  q k^T = (x Wq Wk^T) m^T and (P v) Wo = (P m) Wv Wo, head by head; all
  products are matmuls batched over examples alone, without transposes.
  """
  cfg = self.config
  heads, width = cfg.num_heads, cfg.emb_dim
  split = (width, heads, cfg.head_dim)
  batch, num_queries = x.shape[:2]
  to_key = jnp.einsum(
    "ead,fad->eaf",
    self.query.kernel.reshape(split),
    self.key.kernel.reshape(split),
  ).reshape(width, heads * width)
  to_out = jnp.einsum(
    "ead,adf->aef",
    self.value.kernel.reshape(split),
    self.out.kernel.reshape(heads, cfg.head_dim, width),
  ).reshape(heads * width, width)
  query = jnp.dot(x, to_key.astype(x.dtype))
  query = query.reshape(batch, num_queries * heads, width)
  logits = jnp.einsum("bge,bse->bgs", query, memory)
  logits = logits.reshape(batch, num_queries, heads, -1)
  if bias is not None:
    bias = jnp.transpose(bias, (1, 0, 2))[None]
  weights = _weights(logits, bias, jnp.asarray(mask)[:, :, None, :])
  if drop is not None and drop.shared:
    scale = drop.scale(0, (batch, 1, heads, memory.shape[1]), x.dtype)
    weights = weights * jnp.broadcast_to(scale, weights.shape)
  elif drop is not None:
    weights = weights * drop.scale(0, weights.shape, x.dtype)
  weights = weights.reshape(batch, num_queries * heads, -1)
  mixed = jnp.einsum("bgs,bse->bge", weights, memory)
  mixed = mixed.reshape(batch, num_queries, heads * width)
  return jnp.dot(mixed, to_out.astype(x.dtype))


CROSS = [_plain_cross]


class Absorbed(attention.Attention):
  """`_absorbed` for self-attention, too."""

  def __call__(self, x, memory, *, mask=None, bias=None, dropout=None):
    """Attends from x to memory."""
    if x is not memory:
      return CROSS[0](self, x, memory, mask, bias, dropout)
    return _absorbed(self, x, memory, mask, bias, dropout)


class PlainSelf(attention.Attention):
  """The library's self-attention with the chosen cross-attention."""

  def __call__(self, x, memory, *, mask=None, bias=None, dropout=None):
    """Attends from x to memory."""
    if x is not memory:
      return CROSS[0](self, x, memory, mask, bias, dropout)
    return _plain_cross(self, x, memory, mask, bias, dropout)


# --- Pallas: one program for one head of one example


def _tiles(length):
  """Starts and power-of-two sizes that cover `length` queries."""
  tiles, start = [], 0
  while start < length:
    size = min(64, max(16, 1 << math.ceil(math.log2(length - start))))
    tiles.append((start, size))
    start += size
  return tiles


def _dot(a, b, contract, dtype=None):
  if dtype is not None:
    a, b = a.astype(dtype), b.astype(dtype)
  return lax.dot_general(
    a, b, (contract, ((), ())), preferred_element_type=jnp.float32
  )


def _probabilities(q, k, bias, q_segment, k_segment, keys_exist):
  logits = _dot(q, k, ((1,), (1,))) + bias
  allowed = (q_segment[:, None] == k_segment[None, :]) & (k_segment != 0)[None]
  logits = jnp.where(allowed, logits, MASKED)
  logits = jnp.where(keys_exist[None, :], logits, -jnp.inf)
  p = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
  return p / jnp.sum(p, axis=1, keepdims=True)


def _kernels(length, heads, dim, dtype):
  """Returns the forward and the backward kernel of one (example, head)."""
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton as plgpu

  width = max(16, 1 << math.ceil(math.log2(length)))

  def span(start, size, a):
    # A traced start: what lies past the end is masked, not refused.
    return pl.ds(a * 0 + start, size)

  def read(qkv, which, b, a, start, size):
    rows = start + jnp.arange(size, dtype=jnp.int32)
    return plgpu.load(
      qkv.at[b, span(start, size, a), which * heads + a, :],
      mask=(rows < length)[:, None],
      other=0.0,
    )

  def keys_of(segments, scale, b, a):
    exist = jnp.arange(width, dtype=jnp.int32) < length
    segment = plgpu.load(segments.at[b, span(0, width, a)], mask=exist, other=0)
    keep = plgpu.load(scale.at[b, a, span(0, width, a)], mask=exist, other=0.0)
    return exist, segment, keep

  def queries_of(bias, segments, b, a, start, size, exist):
    rows = start + jnp.arange(size, dtype=jnp.int32) < length
    tile = plgpu.load(
      bias.at[a, span(start, size, a), span(0, width, a)],
      mask=rows[:, None] & exist[None, :],
      other=0.0,
    )
    segment = plgpu.load(
      segments.at[b, span(start, size, a)], mask=rows, other=0
    )
    return rows, tile, segment

  def forward(qkv, bias, segments, scale, out):
    b, a = pl.program_id(0), pl.program_id(1)
    k = read(qkv, 1, b, a, 0, width)
    v = read(qkv, 2, b, a, 0, width)
    exist, k_segment, keep = keys_of(segments, scale, b, a)
    for start, size in _tiles(length):
      rows, tile, q_segment = queries_of(
        bias, segments, b, a, start, size, exist
      )
      q = read(qkv, 0, b, a, start, size)
      p = _probabilities(q, k, tile, q_segment, k_segment, exist)
      o = _dot((p * keep[None, :]).astype(dtype), v, ((1,), (0,)))
      plgpu.store(
        out.at[b, span(start, size, a), a, :],
        o.astype(dtype),
        mask=rows[:, None],
      )

  def backward(qkv, bias, segments, scale, d_out, d_qkv, d_logits):
    b, a = pl.program_id(0), pl.program_id(1)
    k = read(qkv, 1, b, a, 0, width)
    v = read(qkv, 2, b, a, 0, width)
    exist, k_segment, keep = keys_of(segments, scale, b, a)
    d_k = jnp.zeros((width, dim), jnp.float32)
    d_v = jnp.zeros((width, dim), jnp.float32)
    for start, size in _tiles(length):
      rows, tile, q_segment = queries_of(
        bias, segments, b, a, start, size, exist
      )
      q = read(qkv, 0, b, a, start, size)
      g = plgpu.load(
        d_out.at[b, span(start, size, a), a, :],
        mask=rows[:, None],
        other=0.0,
      )
      p = _probabilities(q, k, tile, q_segment, k_segment, exist)
      d_v += _dot((p * keep[None, :]).astype(dtype), g, ((0,), (0,)))
      d_p = _dot(g, v, ((1,), (1,))) * keep[None, :]
      d_s = p * (d_p - jnp.sum(p * d_p, axis=1, keepdims=True))
      d_s = d_s.astype(dtype)
      plgpu.store(
        d_logits.at[b, a, span(start, size, a), span(0, width, a)],
        d_s,
        mask=rows[:, None] & exist[None, :],
      )
      d_q = _dot(d_s, k, ((1,), (0,)))
      plgpu.store(
        d_qkv.at[b, span(start, size, a), a, :],
        d_q.astype(dtype),
        mask=rows[:, None],
      )
      d_k += _dot(d_s, q, ((0,), (0,)))
    for which, value in ((1, d_k), (2, d_v)):
      plgpu.store(
        d_qkv.at[b, span(0, width, a), which * heads + a, :],
        value.astype(dtype),
        mask=exist[:, None],
      )

  return forward, backward


WARPS = {"forward": 4, "backward": 8}


def _call(kernel, out_shape, which, *args):
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton as plgpu

  batch, heads = args[0].shape[0], args[0].shape[2] // 3
  return pl.pallas_call(
    kernel,
    grid=(batch, heads),
    out_shape=out_shape,
    compiler_params=plgpu.CompilerParams(num_warps=WARPS[which], num_stages=1),
    interpret=INTERPRET,
  )(*args)


@jax.custom_vjp
def pallas_attention(qkv, bias, segments, scale):
  """qkv [B, S, 3 A, Dh], bias [A, S, S], segments [B, S], scale [B, A, S]."""
  batch, length, joined, dim = qkv.shape
  heads = joined // 3
  forward, _ = _kernels(length, heads, dim, qkv.dtype)
  shape = jax.ShapeDtypeStruct((batch, length, heads, dim), qkv.dtype)
  return _call(forward, shape, "forward", qkv, bias, segments, scale)


def _pallas_fwd(qkv, bias, segments, scale):
  out = pallas_attention(qkv, bias, segments, scale)
  return out, (qkv, bias, segments, scale)


def _pallas_bwd(saved, gradient):
  qkv, bias, segments, scale = saved
  batch, length, joined, dim = qkv.shape
  heads = joined // 3
  _, backward = _kernels(length, heads, dim, qkv.dtype)
  shapes = (
    jax.ShapeDtypeStruct(qkv.shape, qkv.dtype),
    jax.ShapeDtypeStruct((batch, heads, length, length), qkv.dtype),
  )
  d_qkv, d_logits = _call(
    backward, shapes, "backward", qkv, bias, segments, scale, gradient
  )
  d_bias = jnp.sum(d_logits, axis=0, dtype=jnp.float32)
  return d_qkv, d_bias, None, jnp.zeros_like(scale)


pallas_attention.defvjp(_pallas_fwd, _pallas_bwd)


class Pallas(attention.Attention):
  """`pallas_attention` in the encoder, the library's in the decoder."""

  def __call__(self, x, memory, *, mask=None, bias=None, dropout=None):
    """Attends from x to memory."""
    if x is not memory or x.shape[1] < 16:
      return CROSS[0](self, x, memory, mask, bias, dropout)
    qkv = _qkv(self, x)
    batch, length, _, heads, dim = qkv.shape
    qkv = qkv.reshape(batch, length, 3 * heads, dim)
    if dropout is None:
      scale = jnp.ones((batch, heads, length), jnp.float32)
    else:
      scale = dropout.scale(0, (batch, heads, length), jnp.float32)
    segments = mask[:, 0].astype(jnp.int32)  # 1 real, 0 padding
    out = pallas_attention(qkv, bias, segments, scale)
    return self.out(self._join(out))


# --- MLP


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _gated(x, kernel, wo, scale, first, second):
  both = jnp.dot(x, kernel)
  a, b = jnp.split(both, 2, axis=-1)
  hidden = _activation(first)(a) * _activation(second)(b)
  return jnp.dot(hidden * jnp.broadcast_to(scale, hidden.shape), wo)


def _gated_fwd(x, kernel, wo, scale, first, second):
  both = jnp.dot(x, kernel)
  a, b = jnp.split(both, 2, axis=-1)
  hidden = _activation(first)(a) * _activation(second)(b)
  hidden = hidden * jnp.broadcast_to(scale, hidden.shape)
  return jnp.dot(hidden, wo), (x, kernel, wo, scale, both, hidden)


def _gated_bwd(first, second, saved, g):
  x, kernel, wo, scale, both, hidden = saved
  axes = tuple(range(x.ndim - 1))
  d_wo = jnp.tensordot(hidden, g, (axes, axes))
  d_hidden = jnp.dot(g, wo.T)
  d_hidden = d_hidden * jnp.broadcast_to(scale, d_hidden.shape)
  a, b = jnp.split(both, 2, axis=-1)
  a_out, a_vjp = jax.vjp(_activation(first), a)
  b_out, b_vjp = jax.vjp(_activation(second), b)
  d_both = jnp.concatenate(
    [a_vjp(d_hidden * b_out)[0], b_vjp(d_hidden * a_out)[0]], axis=-1
  )
  d_kernel = jnp.tensordot(x, d_both, (axes, axes))
  return jnp.dot(d_both, kernel.T), d_kernel, d_wo, jnp.zeros_like(scale)


_gated.defvjp(_gated_fwd, _gated_bwd)


def _activation(name):
  function = config.activation(name)
  # float32 inside: the fusion reads and writes the activations' dtype.
  return lambda x: function(x.astype(jnp.float32)).astype(x.dtype)


class SavedMLP(layers.MLP):
  """One matmul for both branches; saves them and the product, no more."""

  def __call__(self, x, dropout=None):
    """Applies the block."""
    first, second = self.config.mlp_activations
    kernel = jnp.concatenate([self.wi_0.kernel, self.wi_1.kernel], axis=1)
    shape = (x.shape[0], 1, self.config.mlp_dim)
    scale = jnp.ones(shape, x.dtype)
    if dropout is not None:
      if not dropout.shared:
        shape = (*x.shape[:2], self.config.mlp_dim)
      scale = dropout.scale(0, shape, x.dtype)
    wo = self.wo.kernel.astype(x.dtype)
    return _gated(x, kernel.astype(x.dtype), wo, scale, first, second)


class FusedMLP(layers.MLP):
  """One matmul for both branches, derivatives by JAX."""

  def __call__(self, x, dropout=None):
    """Applies the block."""
    first, second = (
      config.activation(name) for name in self.config.mlp_activations
    )
    kernel = jnp.concatenate([self.wi_0.kernel, self.wi_1.kernel], axis=1)
    a, b = jnp.split(jnp.dot(x, kernel.astype(x.dtype)), 2, axis=-1)
    hidden = dropout_lib.drop(dropout, 0, first(a) * second(b))
    return self.wo(hidden)


# --- dropout by drawn bits, length padding


def _drawn_mask(bits):
  def keep_mask(seed, shape, rate):
    key = jax.random.wrap_key_data(jnp.concatenate([seed, seed]), impl="rbg")
    if bits == 32:
      return jax.random.bernoulli(key, 1.0 - rate, shape)
    drawn = jax.random.bits(key, shape, f"uint{bits}").astype(jnp.int32)
    return drawn >= jnp.round(rate * (1 << bits)).astype(jnp.int32)

  return keep_mask


def _padded(multiple):
  library = encdec.EncoderDecoder.__call__

  def call(self, inputs, decoder_inputs, **options):
    pad = -inputs.shape[1] % multiple
    inputs = jnp.pad(inputs, ((0, 0), (0, pad)))
    return library(self, inputs, decoder_inputs, **options)

  return call


ATTENTION = {
  "fused": FusedQKV,
  "absorbed": Absorbed,
  "cudnn": CuDNN,
  "pallas": Pallas,
}
MLP = {"fused": FusedMLP, "saved": SavedMLP}


def apply(**parts):
  """Swaps parts of the library for this process.

  Args:
    **parts: attention (a key of ATTENTION), cross ("absorbed"), mlp (a key of
      MLP), bits (32, 16 or 8: masks drawn by the rbg generator), pad (inputs
      padded to a multiple), warps (of the backward kernel).
  """
  if parts.get("cross") == "absorbed":
    CROSS[0] = _absorbed
    attention.Attention = PlainSelf
  if "attention" in parts:
    attention.Attention = ATTENTION[parts["attention"]]
  if "mlp" in parts:
    layers.MLP = MLP[parts["mlp"]]
  if "bits" in parts:
    dropout_lib.keep_mask = _drawn_mask(int(parts["bits"]))
  if "pad" in parts:
    encdec.EncoderDecoder.__call__ = _padded(int(parts["pad"]))
  if "warps" in parts:
    WARPS["backward"] = int(parts["warps"])
