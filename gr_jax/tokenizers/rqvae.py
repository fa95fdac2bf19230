"""RQ-VAE: an MLP encoder and decoder around the residual quantizer. No loop."""

import functools
from typing import no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int32

from gr_jax.tokenizers import quantizer


class MLP(nn.Module):
  """Dense layers with ReLU between them; float32 in, float32 out."""

  widths: tuple[int, ...]  # of every layer, the output last
  dtype: str = "float32"  # of the matmuls; parameters are float32
  precision: lax.Precision | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B C"]:
    """Applies all layers."""
    dtype = jnp.dtype(self.dtype)
    # All biases in one vector: see `bias_rows`.
    bias = self.param("bias", nn.initializers.zeros, (sum(self.widths),))
    rows = bias_rows(bias, x.shape[0], self.widths, dtype)
    for layer, width in enumerate(self.widths):
      last = layer + 1 == len(self.widths)
      kernel = self.param(
        f"kernel_{layer}",
        nn.initializers.lecun_normal() if last else nn.initializers.he_normal(),
        (x.shape[-1], width),
      )
      x = jnp.matmul(
        x.astype(dtype), kernel.astype(dtype), precision=self.precision
      )
      x = x + rows[layer]
      x = x if last else nn.relu(x)
    return x.astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def bias_rows(
  bias: jax.Array, num_rows: int, widths: tuple[int, ...], dtype: jnp.dtype
) -> list[jax.Array]:
  """Spreads one vector of biases over the rows of several layers.

  The gradient of a bias is a sum over the batch: small, but a kernel of its
  own a layer. This one's is a single sum over all layers side by side.

  Args:
    bias: float32 [sum of widths].
    num_rows: B.
    widths: Of every layer.
    dtype: Of the result.

  Returns:
    [B, width] for every layer.
  """
  rows, start = [], 0
  for width in widths:
    part = bias[start : start + width].astype(dtype)
    rows.append(jnp.broadcast_to(part[None, :], (num_rows, width)))
    start += width
  return rows


def _bias_rows_forward(bias, num_rows, widths, dtype):
  return bias_rows(bias, num_rows, widths, dtype), None


def _bias_rows_backward(num_rows, widths, dtype, saved, gradients):
  del num_rows, widths, dtype, saved
  side_by_side = jnp.concatenate(gradients, axis=-1)  # [B, sum of widths]
  return (jnp.sum(side_by_side, axis=0, dtype=jnp.float32),)


bias_rows.defvjp(_bias_rows_forward, _bias_rows_backward)


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class RQVAEOutput:
  """A forward pass."""

  reconstruction: jax.Array  # float32 [B, D]
  quantizer: quantizer.QuantizerOutput


class RQVAENetwork(nn.Module):
  """x -> encoder -> residual quantizer -> decoder -> x^."""

  embedding_dim: int  # D
  hidden_dims: tuple[int, ...]  # of the encoder; the decoder mirrors them
  code_dim: int  # C
  quantizer: quantizer.ResidualQuantizer
  dtype: str = "float32"
  precision: lax.Precision | None = None

  def setup(self) -> None:
    """Makes encoder and decoder."""
    self.encoder = MLP(
      (*self.hidden_dims, self.code_dim), self.dtype, self.precision
    )
    self.decoder = MLP(
      (*self.hidden_dims[::-1], self.embedding_dim), self.dtype, self.precision
    )

  def __call__(
    self, x: Float[Array, "B D"], *, key: jax.Array | None = None
  ) -> RQVAEOutput:
    """Returns the reconstruction and what the quantizer did."""
    out = self.quantizer(self.encoder(x), key=key)
    return RQVAEOutput(self.decoder(out.quantized), out)

  def latents(self, x: Float[Array, "B D"]) -> Float[Array, "B C"]:
    """Returns the encoder's output."""
    return self.encoder(x)

  def codebook_inputs(
    self, x: Float[Array, "B D"]
  ) -> list[Float[Array, "B C"]]:
    """Returns what enters each level of the quantizer."""
    return self.quantizer.inputs(self.encoder(x))

  def encode(self, x: Float[Array, "B D"]) -> Int32[Array, "B L"]:
    """Returns the nearest codes of every level."""
    return self.quantizer.codes(self.encoder(x))

  def decode(self, codes: Int32[Array, "B L"]) -> Float[Array, "B D"]:
    """Returns the decoder's output for codes."""
    return self.decoder(self.quantizer.vectors(codes))


def loss(
  x: Float[Array, "B D"],
  out: RQVAEOutput,
  *,
  commitment_weight: float,
  codebook_weight: float = 1.0,
  entropy_weight: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Adds up the RQ-VAE loss (Lee et al. 2022, arXiv:2203.01941; TIGER, eq. 1).

  |x - x^|^2 + sum_l |sg[r_l] - q_l|^2 + beta |r_l - sg[q_l]|^2, each a mean
  over rows and dimensions, so that weights do not depend on widths.

  Args:
    x: The batch, as the network read it.
    out: The forward pass.
    commitment_weight: beta.
    codebook_weight: 0 when codebooks follow moving averages.
    entropy_weight: Of the gap between soft code usage and uniform usage.

  Returns:
    The loss, and every term for the curves.
  """
  reconstruction = jnp.mean(jnp.square(x - out.reconstruction))
  q = out.quantizer
  total = (
    reconstruction
    + codebook_weight * q.codebook_loss
    + commitment_weight * q.commitment_loss
    + entropy_weight * q.entropy_gap
  )
  return total, {
    "loss": total,
    "reconstruction": reconstruction,
    "codebook": q.codebook_loss,
    "commitment": q.commitment_loss,
  }
