"""Dropout whose mask is a hash of each element's index: no memory traffic.

A training step of a small transformer is bound by memory, and masks drawn by
a random generator are written, read by the forward pass and read again by the
backward pass. Here an element is kept or not by a hash of (seed, index) that
fuses into whatever reads the element, in both passes. The mask depends on the
logical index alone, so any sharding of a batch draws the same one.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

INDEX_FACTOR = 0x9E3779B1  # odd: neighboring indices differ in many bits
# A dropout rate: a number, or a traced scalar so that one compiled program
# can train replicas of different rates.
Rate = float | Float[Array, ""]


@struct.dataclass
class Dropout:
  """Rate and seeds of a network's dropout sites; None stands for no dropout."""

  rate: Any  # share of elements zeroed: float or float32 []
  seeds: Any  # uint32 [sites, 2]
  # One mask for all positions (axis -2) of an example, as T5X draws it.
  shared: bool = struct.field(pytree_node=False)

  def scale(
    self, site: int, shape: tuple[int, ...], dtype: jnp.dtype
  ) -> Float[Array, "..."]:
    """Returns 0 with probability `rate`, else 1 / (1 - rate), per element."""
    kept = keep_mask(self.seeds[site], shape, self.rate)
    # 1 / (1 - rate) in float32 even when the rate is a Python number.
    scale = 1.0 / (1.0 - jnp.asarray(self.rate, jnp.float32))
    return jnp.where(kept, scale, 0.0).astype(dtype)

  def row_words(self, site: int, shape: tuple[int, ...]) -> Int32[Array, "B 3"]:
    """Returns what a kernel needs to draw `scale` of each row of a batch.

    Args:
      site: Which seed to use.
      shape: Of the mask, [B, ...].

    Returns:
      Of each row, see `scale_of_words`: the hash of its first element before
      it is finalized, the seed that enters then, and how many of 2^24 equal
      parts of [0, 1) lie below the rate.
    """
    batch, *rest = shape
    first, second = _mixed(self.seeds[site])
    stride = jnp.uint32(math.prod(rest) * INDEX_FACTOR % (1 << 32))
    starts = first + jnp.arange(batch, dtype=jnp.uint32) * stride
    parts = jnp.ceil(jnp.asarray(self.rate, jnp.float32) * 2.0**24)
    words = [starts, second, parts.astype(jnp.uint32)]
    words = [jnp.broadcast_to(x, (batch,)) for x in words]
    return jax.lax.bitcast_convert_type(jnp.stack(words, axis=-1), jnp.int32)


def start(
  key: jax.Array, *, rate: Rate, num_sites: int, shared: bool
) -> Dropout | None:
  """Draws the seeds of `num_sites` sites; None when the rate is the number 0.

  Args:
    key: Consumed.
    rate: Share of elements to zero, in [0, 1); may be traced.
    num_sites: How often the network drops.
    shared: See `Dropout.shared`.
  """
  if isinstance(rate, float) and rate == 0.0:
    return None
  seeds = jax.random.bits(key, (num_sites, 2), jnp.uint32)
  return Dropout(rate, seeds, shared)


def sites(dropout: Dropout | None, first: int, count: int) -> Dropout | None:
  """Returns the part of `dropout` that serves `count` sites from `first`."""
  if dropout is None:
    return None
  return dropout.replace(seeds=dropout.seeds[first : first + count])


def after(dropout: Dropout | None, first: int) -> Dropout | None:
  """Returns the part of `dropout` without its `first` sites."""
  if dropout is None:
    return None
  return dropout.replace(seeds=dropout.seeds[first:])


def drop(
  dropout: Dropout | None,
  site: int,
  x: Float[Array, "*batch S F"],
  *,
  shared: bool | None = None,
) -> Float[Array, "*batch S F"]:
  """Zeroes a share of x and scales the rest so that the mean stays.

  Args:
    dropout: None returns x.
    site: Which seed to use; each site of a network uses its own.
    x: Activations.
    shared: Overrides `dropout.shared`.
  """
  if dropout is None:
    return x
  shape = x.shape
  if dropout.shared if shared is None else shared:
    shape = (*shape[:-2], 1, shape[-1])
  scale = dropout.scale(site, shape, x.dtype)
  return x * jnp.broadcast_to(scale, x.shape)


def keep_mask(
  seed: UInt32[Array, "2"], shape: tuple[int, ...], rate: Rate
) -> Bool[Array, "..."]:
  """Returns True with probability 1 - rate, independently per element.

  The index is multiplied by an odd constant, so that neighbors differ in many
  bits, and run through a 32-bit integer finalizer of low bias (two rounds of
  multiply and xor-shift, https://nullprogram.com/blog/2018/07/31/), with one
  half of the seed entering before each round. The seed's words are mixed into
  each other first: a bit that differs must reach every element.
  """
  first, second = _mixed(seed)
  x = jnp.full(shape, first, jnp.uint32)
  for axis, size in enumerate(shape):
    if size > 1:
      stride = math.prod(shape[axis + 1 :]) % (1 << 32)
      iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
      x = x + iota * jnp.uint32(stride * INDEX_FACTOR % (1 << 32))
  x = finalize(x, second)
  # The top 24 bits: what float32 compares exactly.
  uniform = (x >> 8).astype(jnp.float32) * (2.0**-24)
  return uniform >= jnp.asarray(rate, jnp.float32)


def scale_of_words(
  index: Int32[Array, "..."], words: Sequence[Int32[Array, "..."]]
) -> Float32[Array, "..."]:
  """`Dropout.scale` of an index inside a row, given its three `row_words`."""
  first, second, parts = words
  x = first + index * np.uint32(INDEX_FACTOR).astype(np.int32)
  bits = finalize(
    jax.lax.bitcast_convert_type(x, jnp.uint32),
    jax.lax.bitcast_convert_type(second, jnp.uint32),
  )
  kept = (bits >> 8).astype(jnp.int32) >= parts
  scale = 1.0 / (1.0 - parts.astype(jnp.float32) * 2.0**-24)
  return jnp.where(kept, scale, jnp.float32(0.0))


def _mixed(seed):
  """Returns two words, each of which depends on all bits of the seed."""
  first = finalize(seed[0] ^ finalize(seed[1] + jnp.uint32(0x9E3779B9)))
  return first, finalize(seed[1] ^ first)


def finalize(
  x: UInt32[Array, "..."], seed: UInt32[Array, "..."] | None = None
) -> UInt32[Array, "..."]:
  """Mixes 32 bits; `seed` enters between the two rounds."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  if seed is not None:
    x = x ^ jnp.broadcast_to(seed, x.shape)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)
