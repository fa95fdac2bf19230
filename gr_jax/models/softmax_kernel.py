"""Attention's softmax and dropout as one GPU kernel forward, one backward.

Between the matmuls of attention stand logits and weights, the largest arrays
of a small network. XLA makes two or three kernels of what happens to them, and
passes float32 from one to the next. Here logits are read once and the weights
that reach the values written once; the backward pass reads the logits and the
weights' gradient, and writes the logits' gradient. A program takes some rows of
several examples one after the other, so that the bias is read, and its gradient
summed, on chip. Dropout draws the mask of `Dropout.scale`.

Holding keys and values on chip, too, so that logits are never written, was
slower on an H200 at 88 tokens: docs/experiments.md.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.experimental import pallas as pl

from gr_jax.core import kernel_axes, pallas_gpu
from gr_jax.models import dropout as dropout_lib

# Finite on purpose: a row of padding, which no result depends on, stays a
# number instead of becoming NaN and spoiling gradients. T5X's value.
MASKED = -1e10
LEAST, MOST = 32, 256  # keys: of fewer, most of a program's would be absent
_ROWS = 32  # of a program: a query of a head each
_EXAMPLES = 8  # of a program, where they share a bias
_NUM_WARPS = 4
_LOG2_E = math.log2(math.e)
# Axes for `kernel_axes.split`.
_LOGITS, _STATS = "r b q a s", "r b q a two"


@dataclasses.dataclass(frozen=True)
class Form:
  """What a call is compiled for."""

  has_bias: bool
  has_mask: bool
  has_scale: bool
  has_words: bool
  interpret: bool


@struct.dataclass
class Operands:
  """Arrays of R replicas; None where the form has none."""

  # Any, not jax.Array: references, too, inside a kernel.
  logits: Any  # [R, B, Q, A, S]
  bias: Any = None  # float32, as the logits without B
  mask: Any = None  # int8 [R, B or 1, Q or 1, S]
  scale: Any = None  # dropout's, one for all queries [R, B, A, S]
  words: Any = None  # or int32 [R, B, 3], see Dropout.row_words


def is_usable(num_keys: int, dtype: jnp.dtype) -> bool:
  """Whether this process has a GPU for the kernels and the sizes fit them."""
  return (
    LEAST <= num_keys <= MOST
    and dtype == jnp.bfloat16
    and pallas_gpu.is_known_device()
  )


def weights(
  logits: jax.Array,
  bias: jax.Array | None,
  mask: jax.Array | None,
  dropout: dropout_lib.Dropout | None,
  *,
  interpret: bool = False,
) -> jax.Array:
  """Returns what multiplies values: softmax over keys, and dropout.

  Args:
    logits: [B, Q, A, S].
    bias: float32 [Q, A, S], added to them.
    mask: bool [#B, #Q, S], False where a weight shall be 0.
    dropout: Drops weights, at one site.
    interpret: Runs the kernels in plain JAX, on any device.

  Returns:
    The logits' shape and dtype.
  """
  scale = words = None
  if dropout is not None and dropout.shared:
    shape = (logits.shape[0], 1, *logits.shape[2:])
    scale = dropout.scale(0, shape, logits.dtype)[:, 0]
  elif dropout is not None:
    words = dropout.row_words(0, logits.shape)
  mask = None if mask is None else mask.astype(jnp.int8)
  operands = Operands(logits, bias, mask, scale, words)
  operands = jax.tree.map(lambda x: x[None], operands)
  form = Form(
    bias is not None,
    mask is not None,
    scale is not None,
    words is not None,
    interpret,
  )
  return _weights(form, operands)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weights(form: Form, operands: Operands) -> jax.Array:
  return _forward(form, operands)[0]


def _forward(form, operands):
  run = kernel_axes.over_replicas(functools.partial(_platform_forward, form))
  out, stats = run(operands)
  return out, (operands, stats)


def _backward(form, saved, gradient):
  run = kernel_axes.over_replicas(functools.partial(_platform_backward, form))
  d_logits, *d_bias = run(*saved, gradient)
  return (Operands(d_logits, d_bias[0] if d_bias else None),)


_weights.defvjp(_forward, _backward)


def _flatten(operands: Operands) -> list[jax.Array]:
  # In the order of the fields.
  return jax.tree.leaves(operands)


def _unflatten(form: Form, flat) -> Operands:
  flat = iter(flat)
  has = (True, form.has_bias, form.has_mask, form.has_scale, form.has_words)
  return Operands(*(next(flat) if is_there else None for is_there in has))


def _axes(operands: Operands) -> list[str]:
  found = [_LOGITS]
  if operands.bias is not None:
    found.append("r q a s")
  if operands.mask is not None:
    batch = operands.logits.shape[1]
    found.append("r b m s" if operands.mask.shape[1] == batch else "r n m s")
  if operands.scale is not None:
    found.append("r b a s")
  if operands.words is not None:
    found.append("r b three")
  return found


def _platform(form, kernel, plain, operands, results, flat):
  # A mask an element counts all heads: each device needs them.
  parts = "r b" if form.has_words else "r b a"
  split = kernel_axes.split(
    kernel, form, tuple(operands), tuple(results), parts
  )
  if form.interpret:
    return split(*flat)
  return lax.platform_dependent(
    *flat, cuda=split, default=functools.partial(plain, form)
  )


def _platform_forward(form: Form, operands: Operands):
  return _platform(
    form,
    _forward_flat,
    _plain_forward,
    _axes(operands),
    [_LOGITS, _STATS],
    _flatten(operands),
  )


def _platform_backward(form: Form, operands: Operands, stats, gradient):
  return _platform(
    form,
    _backward_flat,
    _plain_backward,
    [_STATS, _LOGITS, *_axes(operands)],
    [_LOGITS] + ["r q a s"] * form.has_bias,
    [stats, gradient, *_flatten(operands)],
  )


# --- The plain form. ---


def plain(form: Form, operands: Operands) -> jax.Array:
  """Returns what the forward kernel returns, as written."""
  wide = operands.logits.astype(jnp.float32)
  if form.has_bias:
    wide = wide + operands.bias[:, None]
  if form.has_mask:
    wide = jnp.where(operands.mask[:, :, :, None] != 0, wide, MASKED)
  out = jax.nn.softmax(wide).astype(operands.logits.dtype)
  if form.has_scale:
    out = out * operands.scale[:, :, None]
  if form.has_words:
    index = np.arange(math.prod(out.shape[2:]), dtype=np.int32)
    index = jnp.asarray(index).reshape(1, 1, *out.shape[2:])
    words = operands.words[:, :, None, None, None]
    words = [words[..., i] for i in range(3)]
    out = out * dropout_lib.scale_of_words(index, words).astype(out.dtype)
  return out


def _plain_forward(form, *flat):
  out = plain(form, _unflatten(form, flat))
  return out, jnp.zeros((*out.shape[:-1], 2), jnp.float32)


def _plain_backward(form, _, gradient, *flat):
  operands = _unflatten(form, flat)

  def run(logits, bias):
    return plain(form, operands.replace(logits=logits, bias=bias))

  d_logits, d_bias = jax.vjp(run, operands.logits, operands.bias)[1](gradient)
  return (d_logits, d_bias) if form.has_bias else (d_logits,)


# --- The kernels. ---


def _merge_heads(operands: Operands) -> Operands:
  """Makes one axis of queries and heads; bias in bits."""
  logits, bias = operands.logits, operands.bias
  rows = math.prod(logits.shape[2:4])
  if bias is not None:
    bias = (bias * _LOG2_E).reshape(bias.shape[0], rows, -1)
  logits = logits.reshape(*logits.shape[:2], rows, -1)
  return operands.replace(logits=logits, bias=bias)


def _call(kernel, name, form, num_heads, shapes, flat, logits):
  replicas, batch, rows, _ = logits.shape
  return pl.pallas_call(
    functools.partial(kernel, form=form, num_heads=num_heads),
    grid=(pl.cdiv(rows, _ROWS), pl.cdiv(batch, _num_examples(form)), replicas),
    in_specs=[pallas_gpu.whole(x) for x in flat],
    out_specs=[pallas_gpu.whole(x) for x in shapes],
    out_shape=shapes,
    name=name,
    **pallas_gpu.options(_NUM_WARPS, 1, interpret=form.interpret),
  )(*flat)


def _forward_flat(form: Form, *flat):
  operands = _unflatten(form, flat)
  shape = operands.logits.shape
  operands = _merge_heads(operands)
  logits = operands.logits
  shapes = [
    jax.ShapeDtypeStruct(logits.shape, logits.dtype),
    jax.ShapeDtypeStruct((*logits.shape[:-1], 2), jnp.float32),
  ]
  flat = _flatten(operands)
  out, stats = _call(
    _forward_kernel, "softmax_forward", form, shape[3], shapes, flat, logits
  )
  return out.reshape(shape), stats.reshape(*shape[:-1], 2)


def _backward_flat(form: Form, stats, gradient, *flat):
  operands = _unflatten(form, flat)
  shape = operands.logits.shape
  operands = _merge_heads(operands)
  logits = operands.logits
  shapes = [jax.ShapeDtypeStruct(logits.shape, logits.dtype)]
  if form.has_bias:
    # Of every program's examples.
    count = pl.cdiv(shape[1], _EXAMPLES)
    partial = (shape[0], count, *logits.shape[2:])
    shapes.append(jax.ShapeDtypeStruct(partial, jnp.float32))
  flat = (
    stats.reshape(*logits.shape[:-1], 2),
    gradient.reshape(logits.shape),
    *_flatten(operands),
  )
  d_logits, *d_bias = _call(
    _backward_kernel, "softmax_backward", form, shape[3], shapes, flat, logits
  )
  d_bias = [jnp.sum(x, axis=1).reshape(-1, *shape[2:]) for x in d_bias]
  return (d_logits.reshape(shape), *d_bias)


class _Rows:
  """Some rows of an example, inside a kernel."""

  def __init__(self, form: Form, refs, num_heads: int):
    self.form, self.num_heads = form, num_heads
    self.refs = _unflatten(form, refs)
    _, self.batch, self.num_rows, self.num_keys = self.refs.logits.shape
    self.replica = pl.program_id(2)
    self.first = pl.program_id(1) * _num_examples(form)
    rows = lax.broadcasted_iota(jnp.int32, (_ROWS,), 0)
    self.rows = pl.program_id(0) * _ROWS + rows
    width = max(16, pl.next_power_of_2(self.num_keys))
    self.keys = lax.broadcasted_iota(jnp.int32, (1, width), 1)
    self.is_row = self.rows < self.num_rows
    self.is_key = self.keys < self.num_keys
    self.is_there = self.is_row[:, None] & self.is_key
    self.bias = None
    if form.has_bias:
      self.bias = _load(self.refs.bias.at[self.here()], self.is_there)

  def here(self, *axes):
    """Returns where these rows lie after the replica and `axes`."""
    return (self.replica, *axes, self.rows[:, None], self.keys)

  def example(self, step):
    """Returns an example's number, and where its rows and keys are."""
    example = self.first + step
    return example, self.is_there & (example < self.batch)

  def logits(self, example, is_there):
    """Returns masked logits in bits, -inf where there is no key."""
    refs = self.refs
    wide = _load(refs.logits.at[self.here(example)], is_there)
    wide = wide.astype(jnp.float32) * _LOG2_E
    if self.form.has_bias:
      wide = wide + self.bias
    if self.form.has_mask:
      batch, num_queries = refs.mask.shape[1:3]
      example = example if batch > 1 else 0
      query = self.rows // self.num_heads if num_queries > 1 else self.rows * 0
      where = (self.replica, example, query[:, None], self.keys)
      is_seen = _load(refs.mask.at[where], is_there)
      wide = jnp.where(is_seen.astype(jnp.int32) != 0, wide, MASKED)
    return jnp.where(self.is_key, wide, -jnp.inf)

  def scale(self, example, is_there):
    """Returns dropout's factors."""
    refs = self.refs
    if self.form.has_scale:
      head = self.rows % self.num_heads
      where = (self.replica, example, head[:, None], self.keys)
      return _load(refs.scale.at[where], is_there).astype(jnp.float32)
    example = jnp.minimum(example, self.batch - 1)
    words = [refs.words[self.replica, example, i] for i in range(3)]
    index = self.rows[:, None] * self.num_keys + self.keys
    return dropout_lib.scale_of_words(index, words)

  @property
  def drops(self):
    return self.form.has_scale or self.form.has_words


def _load(ref, mask):
  mask = jnp.broadcast_to(mask, ref.shape)
  return pallas_gpu.load(ref, mask=mask, other=0)


def _store(ref, value, mask):
  mask = jnp.broadcast_to(mask, value.shape)
  pallas_gpu.store(ref, value.astype(ref.dtype), mask=mask)


def _num_examples(form):
  return _EXAMPLES if form.has_bias else 1


def _over_examples(form, body, carry):
  return lax.fori_loop(0, _num_examples(form), body, carry)


def _forward_kernel(*refs, form: Form, num_heads: int):
  *refs, out_ref, stats_ref = refs
  rows = _Rows(form, refs, num_heads)

  def body(step, _):
    example, is_there = rows.example(step)
    wide = rows.logits(example, is_there)
    top = jnp.max(wide, axis=1)
    weights = jnp.exp2(wide - top[:, None])
    factor = 1.0 / jnp.sum(weights, axis=1)
    weights = (weights * factor[:, None]).astype(out_ref.dtype)
    if rows.drops:
      weights = weights.astype(jnp.float32) * rows.scale(example, is_there)
    _store(out_ref.at[rows.here(example)], weights, is_there)
    is_row = rows.is_row & (example < rows.batch)
    at = (rows.replica, example, rows.rows)
    _store(stats_ref.at[(*at, 0)], top, is_row)
    _store(stats_ref.at[(*at, 1)], factor, is_row)
    return 0

  _over_examples(form, body, 0)


def _backward_kernel(stats_ref, gradient_ref, *refs, form, num_heads):
  num_outputs = 1 + form.has_bias
  refs, (d_logits_ref, *d_bias_ref) = refs[:-num_outputs], refs[-num_outputs:]
  rows = _Rows(form, refs, num_heads)

  def body(step, total):
    example, is_there = rows.example(step)
    wide = rows.logits(example, is_there)
    is_row = rows.is_row & (example < rows.batch)
    at = (rows.replica, example, rows.rows)
    # Rows that are not there weigh nothing, whatever the bias.
    top = jnp.where(is_row, _load(stats_ref.at[(*at, 0)], is_row), jnp.inf)
    factor = _load(stats_ref.at[(*at, 1)], is_row)
    weights = jnp.exp2(wide - top[:, None]) * factor[:, None]
    change = _load(gradient_ref.at[rows.here(example)], is_there)
    change = change.astype(jnp.float32)
    if rows.drops:
      change = change * rows.scale(example, is_there)
    mean = jnp.sum(weights * change, axis=1)
    change = weights * (change - mean[:, None])
    _store(d_logits_ref.at[rows.here(example)], change, is_there)
    return total + change if form.has_bias else total

  zeros = jnp.zeros(rows.is_there.shape, jnp.float32) if form.has_bias else 0
  total = _over_examples(form, body, zeros)
  if form.has_bias:
    where = rows.here(pl.program_id(1))
    _store(d_bias_ref[0].at[where], total, rows.is_there)
