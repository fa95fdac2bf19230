"""Sizes and choices of the generator networks, as one frozen dataclass."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gr_jax.core import checks

DTYPES = ("float32", "bfloat16")
ACTIVATIONS = ("relu", "gelu", "silu", "linear")


@dataclasses.dataclass(frozen=True)
class T5Config:
  """A T5 1.1 network; field names follow T5X's `examples/t5/network.py`.

  The defaults are TIGER's generator (arXiv:2305.05065, section 4): 4 + 4
  layers, width 128, 6 heads of 64, MLP width 1024, dropout 0.1.
  Parameters are float32 whatever `dtype` says; norms, softmax and logits are
  computed in float32.

  Attributes:
    vocab_size: Tokens the model knows, token 0 being padding.
    dtype: Type of the activations, "float32" or "bfloat16".
    emb_dim: Model width E.
    num_heads: Attention heads A.
    num_encoder_layers: Encoder layers, unused by a decoder-only model.
    num_decoder_layers: Decoder layers.
    head_dim: Width of a head, free of `emb_dim`.
    mlp_dim: Inner width of the MLP.
    mlp_activations: One activation, or two for a gated MLP whose branches
      are multiplied: ("gelu", "linear") is T5 1.1, ("relu",) is T5 1.0.
    dropout_rate: Share of activations zeroed while training.
    dropout_shared: One dropout mask for all positions of an example, as T5X
      draws it (and, in attention, for all queries), which costs next to no
      memory traffic; False draws one mask per element, as PyTorch does.
    logits_via_embedding: Tie the output head to the token embedding; logits
      are then divided by sqrt(emb_dim), as T5X does.
    relpos_buckets: Buckets of the relative position bias.
    relpos_max_distance: Distance from which all share the last bucket.
  """

  vocab_size: int
  dtype: str = "float32"
  emb_dim: int = 128
  num_heads: int = 6
  num_encoder_layers: int = 4
  num_decoder_layers: int = 4
  head_dim: int = 64
  mlp_dim: int = 1024
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.1
  dropout_shared: bool = True
  logits_via_embedding: bool = False
  relpos_buckets: int = 32
  relpos_max_distance: int = 128

  def __post_init__(self):
    """Refuses values no network can have."""
    checks.check_known(self.dtype, DTYPES, "dtype")
    for name in self.mlp_activations:
      checks.check_known(name, ACTIVATIONS, "activation")
    if len(self.mlp_activations) not in (1, 2):
      raise checks.InputError(
        "mlp_activations takes one name, or two for a gated MLP; got "
        f"{self.mlp_activations}."
      )
    for name, least in (
      ("vocab_size", 2),
      ("emb_dim", 1),
      ("num_heads", 1),
      ("num_encoder_layers", 0),
      ("num_decoder_layers", 1),
      ("head_dim", 1),
      ("mlp_dim", 1),
      ("relpos_buckets", 4),
      ("relpos_max_distance", 2),
    ):
      if getattr(self, name) < least:
        raise checks.InputError(
          f"Need {name} >= {least}; got {getattr(self, name)}."
        )
    if self.relpos_buckets % 2:
      raise checks.InputError(
        f"Need an even relpos_buckets; got {self.relpos_buckets}."
      )
    if self.relpos_max_distance <= self.relpos_buckets // 2:
      raise checks.InputError(
        f"Need relpos_max_distance > relpos_buckets / 2; got "
        f"{self.relpos_max_distance} and {self.relpos_buckets}."
      )
    if not 0 <= self.dropout_rate < 1:
      raise checks.InputError(
        f"Need 0 <= dropout_rate < 1; got {self.dropout_rate}."
      )

  @property
  def activation_dtype(self) -> jnp.dtype:
    """The dtype that `dtype` names."""
    return jnp.dtype(self.dtype)

  @property
  def joined_dim(self) -> int:
    """Width of all heads side by side."""
    return self.num_heads * self.head_dim


def activation(name: str):
  """Returns the elementwise function called `name` in a T5Config."""
  if name == "linear":
    return lambda x: x
  # The tanh form of GELU: what Flax, T5X and Hugging Face's gelu_new use.
  return {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
  }[name]
