"""OPMQ: parallel experts, each with its own codebook, kept orthogonal."""

import dataclasses
import time
from typing import ClassVar, no_type_check

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, lookup, nearest, rng
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import (
  base,
  codebook_init,
  codebook_training,
  gradient_fit,
  kmeans,
  reporting,
  rqvae,
)

_INIT_ROWS_PER_CODE = 64
stop = lax.stop_gradient


class Experts(nn.Module):
  """M multi-layer perceptrons of one shape, evaluated as one batch."""

  num_experts: int  # M
  widths: tuple[int, ...]
  dtype: str = "float32"
  precision: lax.Precision | None = None

  @nn.compact
  def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "M B C"]:
    """Returns z_i = f_i(x) of every expert."""
    dtype = jnp.dtype(self.dtype)
    init = nn.initializers.he_normal(in_axis=1, out_axis=2, batch_axis=0)
    x = jnp.broadcast_to(x[None].astype(dtype), (self.num_experts, *x.shape))
    for layer, width in enumerate(self.widths):
      shape = (self.num_experts, x.shape[-1], width)
      kernel = self.param(f"kernel_{layer}", init, shape)
      bias = self.param(
        f"bias_{layer}", nn.initializers.zeros, (self.num_experts, width)
      )
      x = jnp.einsum(
        "mbd,mdh->mbh", x, kernel.astype(dtype), precision=self.precision
      )
      x = x + bias.astype(dtype)[:, None, :]
      x = nn.relu(x) if layer + 1 < len(self.widths) else x
    return x.astype(jnp.float32)


def expert_gram(experts: dict[str, jax.Array]) -> Float[Array, "M M"]:
  """Returns V V^T, V the row-normalized stack of the experts' parameters.

  Args:
    experts: Parameters with a leading axis of M experts.
  """
  num_experts = next(iter(experts.values())).shape[0]
  stacked = jnp.concatenate(
    [leaf.reshape(num_experts, -1) for leaf in experts.values()], axis=-1
  )  # [M, P]
  norms = jnp.sqrt(jnp.sum(jnp.square(stacked), axis=-1, keepdims=True))
  v = stacked / jnp.maximum(norms, 1e-12)
  return jnp.matmul(v, v.T, precision=lax.Precision.HIGHEST)


def orthogonality(experts: dict[str, jax.Array]) -> Float[Array, ""]:
  """Returns |V V^T - I|_F^2; see `expert_gram`."""
  gram = expert_gram(experts)
  return jnp.sum(jnp.square(gram - jnp.eye(gram.shape[0])))


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class OPMQOutput:
  """A forward pass."""

  reconstruction: jax.Array  # float32 [B, D]
  codes: jax.Array  # int32 [B, L]
  latents: jax.Array  # float32 [L, B, C], z_i
  codebook_loss: jax.Array  # float32 [], sum over experts of |sg[z_i] - s_i|^2
  commitment_loss: jax.Array  # float32 [], of |z_i - sg[s_i]|^2


class OPMQNetwork(nn.Module):
  """x -> experts -> one codebook each -> sum -> decoder -> x^."""

  embedding_dim: int
  codebook_sizes: tuple[int, ...]
  hidden_dims: tuple[int, ...]
  code_dim: int
  dtype: str = "float32"
  precision: lax.Precision | None = None

  def setup(self) -> None:
    """Makes experts, codebooks and decoder."""
    self.experts = Experts(
      len(self.codebook_sizes),
      (*self.hidden_dims, self.code_dim),
      self.dtype,
      self.precision,
    )
    self.quantizer = Codebooks(self.codebook_sizes, self.code_dim)
    self.decoder = rqvae.MLP(
      (*self.hidden_dims[::-1], self.embedding_dim), self.dtype, self.precision
    )

  def __call__(self, x: Float[Array, "B D"]) -> OPMQOutput:
    """Returns Decoder(sum_i (z_i + sg[s_i - z_i])) and the loss terms."""
    latents = self.experts(x)  # [M, B, C]
    codes = self.quantizer.choose(stop(latents))  # [B, M]
    chosen = self.quantizer.vectors(codes)  # [M, B, C]
    passed = jnp.sum(latents + stop(chosen - latents), axis=0)  # [B, C]
    width = latents.shape[1] * latents.shape[2]
    return OPMQOutput(
      reconstruction=self.decoder(passed),
      codes=codes,
      latents=stop(latents),
      codebook_loss=jnp.sum(jnp.square(stop(latents) - chosen)) / width,
      commitment_loss=jnp.sum(jnp.square(latents - stop(chosen))) / width,
    )

  def latents(self, x: Float[Array, "B D"]) -> Float[Array, "M B C"]:
    """Returns every expert's output."""
    return self.experts(x)

  def encode(self, x: Float[Array, "B D"]) -> Int32[Array, "B L"]:
    """Returns the nearest code of every expert."""
    return self.quantizer.choose(self.experts(x))

  def decode(self, codes: Int32[Array, "B L"]) -> Float[Array, "B D"]:
    """Returns the decoder's output for codes."""
    return self.decoder(jnp.sum(self.quantizer.vectors(codes), axis=0))


class Codebooks(nn.Module):
  """One codebook per expert; none sees what another left."""

  sizes: tuple[int, ...]
  code_dim: int

  def setup(self) -> None:
    """Makes the codebooks; fits replace these first values."""
    self.codebooks = [
      self.param(
        f"codebook_{i}", nn.initializers.lecun_normal(), (size, self.code_dim)
      )
      for i, size in enumerate(self.sizes)
    ]

  def choose(self, latents: Float[Array, "M B C"]) -> Int32[Array, "B M"]:
    """Returns the code nearest to each expert's output."""
    return jnp.stack(
      [
        nearest.nearest_code(z, stop(codebook))
        for z, codebook in zip(latents, self.codebooks, strict=True)
      ],
      axis=-1,
    )

  def vectors(self, codes: Int32[Array, "B M"]) -> Float[Array, "M B C"]:
    """Returns the chosen codes, differentiable w.r.t. the codebooks."""
    return jnp.stack(
      [
        lookup.lookup(codebook, codes[:, i])
        for i, codebook in enumerate(self.codebooks)
      ]
    )


@dataclasses.dataclass(frozen=True)
class OPMQ(codebook_training.CodebookOptions):
  """Orthogonal parallel multi-expert quantization (STORE, arXiv:2511.18805).

  Experts z_i = f_i(x), each quantized to s_i by its own codebook;
  x^ = Decoder(sum_i (z_i + sg[s_i - z_i])). The loss is |x - x^|^2
  + lambda |V V^T - I|_F^2, V the row-normalized stack of the experts'
  parameters, plus VQ-VAE's codebook and commitment terms, without which no
  codebook would move. Tokens are parallel, not hierarchical.
  """

  hierarchical: ClassVar[bool] = False
  fits_on_mesh: ClassVar[bool] = True

  hidden_dims: tuple[int, ...] = (256, 128)  # of every expert
  code_dim: int = 32
  commitment_weight: float = 0.25  # beta
  orthogonality_weight: float = 0.1  # lambda

  def __post_init__(self):
    """Refuses impossible options."""
    super().__post_init__()
    checks.check_at_least(
      1, hidden_dims=self.hidden_dims, code_dim=self.code_dim
    )
    checks.check_at_least(
      0,
      commitment_weight=self.commitment_weight,
      orthogonality_weight=self.orthogonality_weight,
    )

  def network(self, embedding_dim: int, *, training: bool) -> OPMQNetwork:
    """Returns the network; when encoding it computes in full float32."""
    return OPMQNetwork(
      embedding_dim=embedding_dim,
      codebook_sizes=self.codebook_sizes,
      hidden_dims=self.hidden_dims,
      code_dim=self.code_dim,
      dtype=self.compute_dtype if training else "float32",
      precision=None if training else lax.Precision.HIGHEST,
    )

  def loss(self, params, x, *, key):
    """Implements `gradient_fit.Program`."""
    del key
    out = self.network(x.shape[1], training=True).apply({"params": params}, x)
    reconstruction = jnp.mean(jnp.square(x - out.reconstruction))
    overlap = orthogonality(params["experts"])
    codebook_weight = 0.0 if self.ema_decay else 1.0
    total = (
      reconstruction
      + self.orthogonality_weight * overlap
      + codebook_weight * out.codebook_loss
      + self.commitment_weight * out.commitment_loss
    )
    metrics = {
      "loss": total,
      "reconstruction": reconstruction,
      "codebook": out.codebook_loss,
      "commitment": out.commitment_loss,
      "orthogonality": overlap,
    }
    return total, (metrics, (out.codes, out.latents) if self.ema_decay else ())

  def hard_codes(self, params, x):
    """Implements `CodebookOptions`."""
    return self.network(x.shape[1], training=True).apply(
      {"params": params}, x, method="encode"
    )

  def codebook_inputs(self, params, x):
    """Implements `CodebookOptions`."""
    return self.network(x.shape[1], training=True).apply(
      {"params": params}, x, method="latents"
    )

  def init_params(
    self,
    x: Float[Array, "N D"],
    *,
    key: jax.Array,
    split: RowSplit | None = None,
  ):
    """Draws the networks and fills each codebook from its expert's outputs.

    Args:
      x: All rows, normalized.
      key: Random key.
      split: How the rows lie on several devices.
    """
    network = self.network(x.shape[1], training=False)
    params = gradient_fit.init_network(
      network, jnp.zeros((1, x.shape[1])), key=rng.stream(key, "networks")
    )
    rows = kmeans.sample_rows(
      x,
      _INIT_ROWS_PER_CODE * max(self.codebook_sizes),
      rng.stream(key, "rows"),
      split=split,
    )
    latents = gradient_fit.apply_network(
      network, params, rows, method="latents"
    )
    codebook_key = rng.stream(key, "codebooks")
    codebooks = [
      codebook_init.CODEBOOK_INITS[self.codebook_init](
        latents[i], num_codes=size, key=jax.random.fold_in(codebook_key, i)
      )
      for i, size in enumerate(self.codebook_sizes)
    ]
    return self.with_codebooks(params, codebooks)

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: gradient_fit.TrainedState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[gradient_fit.TrainedState, base.FitReport]:
    """Trains experts, codebooks and decoder; `init` gives first values.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share rows and batches; None for one.

    Returns:
      The state; curves hold every loss term by epoch, the orthogonality
      penalty among them, and the usage by round.

    Raises:
      InputError: See `base.check_fit`; the loss is not finite.
    """
    started = time.monotonic()
    template = self.abstract_state(x.shape[1])
    base.check_fit(x, self.codebook_sizes, init=init, template=template)
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    normalization, rows = gradient_fit.prepare(
      x, standardize=self.standardize, init=init, split=split
    )
    if init is None:
      params = self.init_params(rows, key=rng.stream(key, "init"), split=split)
    else:
      params = jax.tree.map(jnp.array, init.params)  # a copy: it is donated
    outcome = gradient_fit.fit(
      self,
      params,
      self.start_extra(params),
      rows,
      key=key,
      name="OPMQ",
      split=split,
    )
    state = gradient_fit.TrainedState(outcome.params, normalization)
    return state, reporting.fit_report(
      self,
      state,
      x,
      started=started,
      revived=codebook_training.total_revived(outcome.rounds),
      curves={
        **outcome.curves,
        **codebook_training.usage_curves(outcome.rounds),
      },
    )

  def encode(
    self,
    state: gradient_fit.TrainedState,
    x: Float[Array | np.ndarray, "B D"],
  ) -> Int32[Array, "B L"]:
    """Returns the nearest code of every expert, in full float32."""
    base.check_rows(x, state.normalization.mean.shape[0])
    return gradient_fit.encode_with(self, state, x)

  def decode(
    self,
    state: gradient_fit.TrainedState,
    codes: Int[Array | np.ndarray, "B L"],
  ) -> Float[Array, "B D"]:
    """Returns the decoder's output for codes, in the input's units."""
    base.check_codes(codes, self.codebook_sizes)
    return gradient_fit.decode_with(self, state, jnp.asarray(codes))

  def abstract_state(self, embedding_dim: int) -> gradient_fit.TrainedState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return gradient_fit.abstract_trained(
      self.network(embedding_dim, training=False), embedding_dim
    )
