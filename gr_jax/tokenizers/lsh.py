"""SimHash tokens: signs of random projections. Nothing is trained."""

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

from gr_jax.core import checks
from gr_jax.tokenizers import base, reporting


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class LSHState:
  """Hyperplanes, and the affine map that decodes their signs."""

  planes: jax.Array  # float32 [L, num_bits, D], the normals w
  mean: jax.Array  # float32 [D], of the fitted rows
  direction_mean: jax.Array  # float32 [D], of their summed signed normals
  scale: jax.Array  # float32 []


@dataclasses.dataclass(frozen=True)
class LSH:
  """Locality-sensitive hashing by SimHash (TIGER's baseline, section 4.4).

  Token = sum_i 2^i b_i with b_i = [w_i . x > 0] and w_i a random normal:
  P(a bit differs) = angle / pi (Charikar 2002). `decode` is a least-squares
  fit of one scale to the sum of the signed normals; codes do not depend on it.
  """

  hierarchical: ClassVar[bool] = False

  num_tokens: int = 3
  num_bits: int = 8  # h: 2^h values a token

  def __post_init__(self):
    """Refuses tokens that int32 cannot number."""
    if self.num_tokens < 1 or not 1 <= self.num_bits <= 30:
      raise checks.InputError(
        f"lsh needs num_tokens >= 1 and 1 <= num_bits <= 30, so that 2^bits "
        f"fits in int32; got {self.num_tokens=}, {self.num_bits=}."
      )

  @property
  def codebook_sizes(self) -> tuple[int, ...]:
    """2^num_bits for every token."""
    return (2**self.num_bits,) * self.num_tokens

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: LSHState | None = None,
  ) -> tuple[LSHState, base.FitReport]:
    """Draws the hyperplanes; `init` keeps its own.

    Args:
      x: float32, one row an item; read for decoding only.
      key: Random key.
      init: State of an earlier fit with the same configuration.

    Raises:
      InputError: See `base.check_fit`.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, init=init, template=template)
    if init is None:
      shape = (self.num_tokens, self.num_bits, x.shape[1])
      planes = jax.random.normal(key, shape)
    else:
      planes = jnp.array(init.planes)
    state = _fit_decoder(planes, jnp.asarray(x))
    return state, reporting.fit_report(
      self, state, x, started=started, learned=False
    )

  def encode(
    self, state: LSHState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns one integer of `num_bits` sign bits per token."""
    base.check_rows(x, state.planes.shape[-1])
    return _encode(state.planes, jnp.asarray(x))

  def decode(
    self, state: LSHState, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns the mean row plus the scaled sum of signed normals."""
    base.check_codes(codes, self.codebook_sizes)
    return _decode(state, jnp.asarray(codes))

  def abstract_state(self, embedding_dim: int) -> LSHState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    return LSHState(
      planes=shape((self.num_tokens, self.num_bits, embedding_dim)),
      mean=shape((embedding_dim,)),
      direction_mean=shape((embedding_dim,)),
      scale=shape(()),
    )


@jax.jit
def _encode(planes: jax.Array, x: jax.Array) -> jax.Array:
  dots = jnp.einsum(
    "bd,lhd->blh", x, planes, precision=lax.Precision.HIGHEST
  )  # [B, L, h]
  bits = (dots > 0).astype(jnp.int32)
  weights = 2 ** jnp.arange(planes.shape[1], dtype=jnp.int32)
  return jnp.sum(bits * weights[None, None, :], axis=-1)  # [B, L]


def _directions(planes: jax.Array, codes: jax.Array) -> jax.Array:
  """Sums the normals of all tokens, each with its bit's sign; [B, D]."""
  shifts = jnp.arange(planes.shape[1], dtype=jnp.int32)
  bits = (codes[..., None] >> shifts[None, None, :]) & 1  # [B, L, h]
  signs = 2.0 * bits.astype(jnp.float32) - 1.0
  return jnp.einsum(
    "blh,lhd->bd", signs, planes, precision=lax.Precision.HIGHEST
  )


@jax.jit
def _fit_decoder(planes: jax.Array, x: jax.Array) -> LSHState:
  directions = _directions(planes, _encode(planes, x))  # [N, D]
  mean, direction_mean = jnp.mean(x, axis=0), jnp.mean(directions, axis=0)
  centered = directions - direction_mean[None, :]
  scale = jnp.sum((x - mean[None, :]) * centered) / jnp.maximum(
    jnp.sum(jnp.square(centered)), 1e-12
  )
  return LSHState(planes, mean, direction_mean, scale)


@jax.jit
def _decode(state: LSHState, codes: jax.Array) -> jax.Array:
  directions = _directions(state.planes, codes) - state.direction_mean[None, :]
  return state.mean[None, :] + state.scale * directions
