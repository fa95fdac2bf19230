"""Random codes: the floor of every comparison."""

import dataclasses
import functools
import time
from typing import ClassVar, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int, Int32

from gr_jax.tokenizers import base, reporting


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class RandomState:
  """The hash's salt, and the mean row that every code decodes to."""

  salt: jax.Array  # uint32 [L]
  mean: jax.Array  # float32 [D]


@dataclasses.dataclass(frozen=True)
class RandomCodes:
  """Codes that say nothing about the item: a salted hash of its embedding.

  `encode` must give an item the same code whenever it is asked, so the codes
  are a hash of the row's bits. Equal rows get equal codes, and different rows
  collide as often as random numbers do (N^2 / 2 / prod K pairs); the collision
  policy makes them unique, as for every tokenizer.
  """

  hierarchical: ClassVar[bool] = False

  codebook_sizes: tuple[int, ...] = (256, 256, 256)

  def __post_init__(self):
    """Refuses impossible sizes."""
    base.check_sizes(self.codebook_sizes)

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: RandomState | None = None,
  ) -> tuple[RandomState, base.FitReport]:
    """Draws the salt; `init` keeps its own.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.

    Raises:
      InputError: See `base.check_fit`.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, init=init, template=template)
    if init is None:
      salt = jax.random.bits(key, (len(self.codebook_sizes),), jnp.uint32)
    else:
      salt = jnp.array(init.salt)
    state = RandomState(salt, jnp.mean(jnp.asarray(x), axis=0))
    return state, reporting.fit_report(
      self, state, x, started=started, learned=False
    )

  def encode(
    self, state: RandomState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the hash of every row, reduced to each level's size."""
    base.check_rows(x, state.mean.shape[0])
    return _hash(state.salt, jnp.asarray(x), self.codebook_sizes)

  def decode(
    self, state: RandomState, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns the mean row: all that a random code tells."""
    base.check_codes(codes, self.codebook_sizes)
    shape = (codes.shape[0], state.mean.shape[0])
    return jnp.broadcast_to(state.mean[None, :], shape)

  def abstract_state(self, embedding_dim: int) -> RandomState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return RandomState(
      salt=jax.ShapeDtypeStruct((len(self.codebook_sizes),), jnp.uint32),
      mean=jax.ShapeDtypeStruct((embedding_dim,), jnp.float32),
    )


@functools.partial(jax.jit, static_argnames="sizes")
def _hash(salt: jax.Array, x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
  # Minus zero equals zero and must hash alike.
  bits = lax.bitcast_convert_type(jnp.where(x == 0, 0.0, x), jnp.uint32)
  state = jnp.broadcast_to(salt[None, :], (x.shape[0], len(sizes)))  # [B, L]

  def absorb(state: jax.Array, column: jax.Array):
    return _mix(state ^ column[:, None]) + jnp.uint32(0x9E3779B9), None

  state, _ = lax.scan(absorb, state, bits.T)
  limits = jnp.array(sizes, jnp.uint32)
  return (_mix(state) % limits[None, :]).astype(jnp.int32)


def _mix(value: jax.Array) -> jax.Array:
  """Hashes 32 bits to 32 bits (the finalizer of MurmurHash3)."""
  value = (value ^ (value >> 16)) * jnp.uint32(0x85EBCA6B)
  value = (value ^ (value >> 13)) * jnp.uint32(0xC2B2AE35)
  return value ^ (value >> 16)
