"""Building blocks of a T5 1.1 network: dense, norm, embedding, MLP, dropout.

Parameter names, shapes and initial distributions are those of T5X's
`examples/t5` (https://github.com/google-research/t5x), so that checkpoints
interchange. Parameters are float32; activations take the config's dtype.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gr_jax.core import lookup
from gr_jax.models import config as config_lib

# A dropout rate: a number, or a traced scalar so that one compiled program
# can train replicas of different rates.
Rate = float | Float[Array, ""]


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
  """Token embeddings, and the tied output head when there is one."""

  num_embeddings: int
  features: int
  dtype: jnp.dtype = jnp.dtype("float32")

  def setup(self):
    """Declares the table [V, E], unit normal."""
    self.embedding = self.param(
      "embedding",
      nn.initializers.normal(stddev=1.0),
      (self.num_embeddings, self.features),
      jnp.float32,
    )

  def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch E"]:
    """Looks tokens up; ids past the table are clipped to its last row."""
    return lookup.lookup(self.embedding.astype(self.dtype), tokens)

  def attend(self, x: Float[Array, "*batch E"]) -> Float[Array, "*batch V"]:
    """Returns x @ table.T / sqrt(E) in float32: the tied head's logits."""
    logits = jnp.dot(x.astype(jnp.float32), self.embedding.T)
    return logits / math.sqrt(self.features)


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
    self, x: Float[Array, "B S E"], rate: Rate | None = None
  ) -> Float[Array, "B S E"]:
    """Applies the block; `rate` is dropout's, None for none."""
    cfg = self.config
    first = config_lib.activation(cfg.mlp_activations[0])
    if len(cfg.mlp_activations) == 2:
      second = config_lib.activation(cfg.mlp_activations[1])
      hidden = first(self.wi_0(x)) * second(self.wi_1(x))  # [B, S, M]
    else:
      hidden = first(self.wi(x))  # [B, S, M]
    return self.wo(dropout(self, hidden, rate))


def dropout(
  module: nn.Module,
  x: Float[Array, "B S F"],
  rate: Rate | None,
  *,
  shared: bool | None = None,
) -> Float[Array, "B S F"]:
  """Zeroes a share `rate` of x and scales the rest by 1 / (1 - rate).

  Args:
    module: Draws from its "dropout" stream; its config says whether one mask
      serves all positions.
    x: Activations.
    rate: Share to zero; None (or the number 0) returns x.
    shared: Overrides the config's `dropout_shared`.

  Returns:
    An array like x.
  """
  if is_off(rate):
    return x
  if shared is None:
    shared = module.config.dropout_shared
  shape = (x.shape[0], 1, x.shape[2]) if shared else x.shape
  scale = dropout_scale(module.make_rng("dropout"), shape, rate, x.dtype)
  return x * jnp.broadcast_to(scale, x.shape)


def is_off(rate: Rate | None) -> bool:
  """Whether dropout is off by a static choice (a traced 0 is not static)."""
  return rate is None or (isinstance(rate, float) and rate == 0.0)


def dropout_scale(
  key: jax.Array, shape: tuple[int, ...], rate: Rate, dtype: jnp.dtype
) -> Float[Array, "..."]:
  """Draws 0 with probability `rate`, else 1 / (1 - rate).

  16 random bits an element, half of what a uniform float takes: the rate is
  met to 2^-17.
  """
  bits = jax.random.bits(key, shape, jnp.uint16)
  rate = jnp.asarray(rate, jnp.float32)
  threshold = jnp.round(rate * 65536).astype(jnp.int32)
  keep = bits.astype(jnp.int32) >= threshold
  return jnp.where(keep, 1.0 / (1.0 - rate), 0.0).astype(dtype)
