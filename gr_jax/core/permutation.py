"""A random-access pseudo-random permutation: shuffling by index arithmetic.

Position i of epoch e maps to an example without any table, so a training step
computes its own batch from its step number, a resumed run continues with the
same order, and every host can compute its own part. The construction is a
Feistel network over the smallest even number of bits that covers the range,
with cycle walking for the values beyond it (Black and Rogaway, "Ciphers with
Arbitrary Finite Domains", CT-RSA 2002, sections 3 and 4).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Int32, UInt32

from gr_jax.core import checks

_ROUNDS = 6
MAX_SIZE = 1 << 30


def round_keys(key: jax.Array) -> UInt32[Array, "6"]:
  """Draws the network's round keys from a typed key.

  Args:
    key: A typed key, scalar; one permutation per key.

  Returns:
    uint32 [6], one word a round.
  """
  return jax.random.bits(key, (_ROUNDS,), jnp.uint32)


def _mix(value: jax.Array, round_key: jax.Array) -> jax.Array:
  """Hashes 32 bits to 32 bits (the finalizer of MurmurHash3)."""
  value = value ^ round_key
  value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
  value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
  return value ^ (value >> 16)


def permute(
  index: Int[Array, "B"], keys: UInt32[Array, "*S 6"], *, size: int
) -> Int[Array, "B"]:
  """Maps positions to positions, one-to-one on 0..size-1.

  Args:
    index: int32 [B], each in 0..size-1.
    keys: uint32 [6] for all, or [B, 6], one row of round keys a position.
    size: How many positions there are, at most 2^30.

  Returns:
    int32 [B], the image of every position.

  Raises:
    InputError: `size` is not in 1..2^30.
  """
  if not 1 <= size <= MAX_SIZE:
    raise checks.InputError(f"A permutation needs 1..2^30 items; got {size=}.")
  half = max(1, ((size - 1).bit_length() + 1) // 2)
  mask = jnp.uint32((1 << half) - 1)

  def encrypt(value: jax.Array) -> jax.Array:
    left, right = value >> half, value & mask
    for r in range(_ROUNDS):
      left, right = right, left ^ (_mix(right, keys[..., r]) & mask)
    return (left << half) | right

  def walk(value: jax.Array) -> jax.Array:
    # At most 4x the range is covered, so this takes a few steps on average.
    return jnp.where(value >= size, encrypt(value), value)

  value = jax.lax.while_loop(
    lambda v: jnp.any(v >= size), walk, encrypt(index.astype(jnp.uint32))
  )
  return value.astype(jnp.int32)


def permute_numpy(
  index: Int[np.ndarray, "B"], keys: UInt32[np.ndarray, "6"], size: int
) -> Int32[np.ndarray, "B"]:
  """Equals `permute`, without JAX: a host's workers may have no device."""
  half = np.uint32(max(1, ((size - 1).bit_length() + 1) // 2))
  mask = np.uint32((1 << int(half)) - 1)
  value = index.astype(np.uint32)
  wanted = np.arange(value.size)
  while wanted.size:
    left, right = value[wanted] >> half, value[wanted] & mask
    for key in keys:
      left, right = right, left ^ (_mix_numpy(right ^ key) & mask)
    value[wanted] = (left << half) | right
    wanted = wanted[value[wanted] >= size]
  return value.astype(np.int32)


def _mix_numpy(value: np.ndarray) -> np.ndarray:
  value = (value ^ (value >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  value = (value ^ (value >> np.uint32(13))) * np.uint32(0xC2B2AE35)
  return value ^ (value >> np.uint32(16))
