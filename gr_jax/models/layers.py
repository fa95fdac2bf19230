"""Building blocks of a T5 1.1 network: dense, norm, embedding, MLP, dropout.

Parameter names, shapes and initial distributions are those of T5X's
`examples/t5` (https://github.com/google-research/t5x), so that checkpoints
interchange. Parameters are float32; activations take the config's dtype.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gr_jax.core import lookup
from gr_jax.models import config as config_lib
from gr_jax.models import dropout as dropout_lib


class Dense(nn.Module):
  """A linear map without bias over the last axis.

  The kernel is open to the parent, which may join several into one matmul.
  """

  in_features: int
  out_features: int
  dtype: jnp.dtype = jnp.dtype("float32")
  init_scale: float = 1.0  # multiplies the standard deviation
  truncated: bool = False  # the MLP and the head draw truncated normals

  def setup(self):
    """Declares the kernel [in, out], variance 1 / in."""
    name = "truncated_normal" if self.truncated else "normal"
    init = nn.initializers.variance_scaling(1.0, "fan_in", name)

    def scaled(*args):
      return init(*args) * self.init_scale

    self.kernel = self.param(
      "kernel", scaled, (self.in_features, self.out_features), jnp.float32
    )

  def __call__(
    self, x: Float[Array, "*batch in"]
  ) -> Float[Array, "*batch out"]:
    """Returns x @ kernel in `dtype`."""
    return jnp.dot(x.astype(self.dtype), self.kernel.astype(self.dtype))


class RMSNorm(nn.Module):
  """T5's layer norm: no mean, no bias (arXiv:1910.07467, eq. 4)."""

  features: int
  dtype: jnp.dtype = jnp.dtype("float32")
  epsilon: float = 1e-6

  def setup(self):
    """Declares the scale [E], ones."""
    self.scale = self.param(
      "scale", nn.initializers.ones, (self.features,), jnp.float32
    )

  def __call__(self, x: Float[Array, "*batch E"]) -> Float[Array, "*batch E"]:
    """Scales every row to unit mean square; float32 inside, `dtype` out."""
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(mean_square + self.epsilon)
    return (x * jnp.broadcast_to(self.scale, x.shape)).astype(self.dtype)


class Embedding(nn.Module):
  """Token embeddings, and the tied output head when there is one.

  Attributes:
    num_embeddings: V.
    features: E.
    dtype: Of what is looked up.
    scaled: Whether the table is sqrt(E) times smaller than what is looked up.
      An untrained network is the same, but Adam, whose updates know no scale,
      moves it sqrt(E) times as far: what a table needs whose rows are seen a
      few times an epoch. T5X's is not scaled.
  """

  num_embeddings: int
  features: int
  dtype: jnp.dtype = jnp.dtype("float32")
  scaled: bool = False

  def setup(self):
    """Declares the table [V, E], normal of variance 1, or 1 / E if scaled."""
    self._scale = math.sqrt(self.features) if self.scaled else 1.0
    self.embedding = self.param(
      "embedding",
      nn.initializers.normal(stddev=1.0 / self._scale),
      (self.num_embeddings, self.features),
      jnp.float32,
    )

  def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch E"]:
    """Looks tokens up; ids past the table are clipped to its last row."""
    rows = lookup.lookup(self.embedding.astype(self.dtype), tokens)
    return rows * jnp.asarray(self._scale, self.dtype)

  def attend(
    self, x: Float[Array, "*batch E"], rows: tuple[int, int] | None = None
  ) -> Float[Array, "*batch K"]:
    """Returns x @ rows.T / sqrt(E) in float32: the tied head's logits.

    Args:
      x: Hidden states.
      rows: First and number of the tokens to give logits of; None for all.
    """
    table = self.embedding
    if rows is not None:
      table = table[rows[0] : sum(rows)]
    logits = jnp.dot(x.astype(jnp.float32), table.T)
    return logits * (self._scale / math.sqrt(self.features))


class MLP(nn.Module):
  """The feed-forward block, gated when the config names two activations.

  wo(dropout(f_0(x wi_0) * f_1(x wi_1))), arXiv:2002.05202 eq. 6.
  """

  config: config_lib.T5Config

  def setup(self):
    """Declares wi (or wi_0, wi_1) [E, M] and wo [M, E]."""
    cfg = self.config
    names = ["wi_0", "wi_1"] if len(cfg.mlp_activations) == 2 else ["wi"]
    for name in names:
      setattr(
        self,
        name,
        Dense(cfg.emb_dim, cfg.mlp_dim, cfg.activation_dtype, truncated=True),
      )
    self.wo = Dense(
      cfg.mlp_dim, cfg.emb_dim, cfg.activation_dtype, truncated=True
    )

  def __call__(
    self,
    x: Float[Array, "B S E"],
    dropout: dropout_lib.Dropout | None = None,
  ) -> Float[Array, "B S E"]:
    """Applies the block, dropping at one site."""
    cfg = self.config
    if len(cfg.mlp_activations) == 1:
      hidden = config_lib.activation(cfg.mlp_activations[0])(self.wi(x))
      return self.wo(dropout_lib.drop(dropout, 0, hidden))
    hidden = _gate(cfg.mlp_activations, self.wi_0(x), self.wi_1(x))
    return self.wo(dropout_lib.drop(dropout, 0, hidden))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gate(
  activations: tuple[str, str], a: jax.Array, b: jax.Array
) -> jax.Array:
  """Returns f_0(a) f_1(b), float32 inside; keeps a and b for its gradient."""
  first, second = map(config_lib.activation, activations)
  wide = first(a.astype(jnp.float32)) * second(b.astype(jnp.float32))
  return wide.astype(a.dtype)


def _gate_forward(activations, a, b):
  return _gate(activations, a, b), (a, b)


def _gate_backward(activations, saved, gradient):
  first, second = map(config_lib.activation, activations)
  # Behind the barrier XLA computes the activations anew; it would otherwise
  # find them in the forward pass and keep them in float32.
  saved = jax.lax.optimization_barrier(saved)
  a, b = (x.astype(jnp.float32) for x in saved)
  gradient = gradient.astype(jnp.float32)
  a_out, a_vjp = jax.vjp(first, a)
  b_out, b_vjp = jax.vjp(second, b)
  (d_a,), (d_b,) = a_vjp(gradient * b_out), b_vjp(gradient * a_out)
  return d_a.astype(saved[0].dtype), d_b.astype(saved[1].dtype)


_gate.defvjp(_gate_forward, _gate_backward)
