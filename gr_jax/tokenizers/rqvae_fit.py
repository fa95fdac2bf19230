"""The `rq_vae` tokenizer: options, revival and alarms, fit, encode, decode."""

import dataclasses
import time
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import checks, rng
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import (
  base,
  codebook_init,
  codebook_training,
  estimators,
  gradient_fit,
  kmeans,
  quantizer,
  reporting,
  rqvae,
)

# Codebooks start from the latents of at most this many rows per code.
_INIT_ROWS_PER_CODE = 64


@dataclasses.dataclass(frozen=True)
class RQVAE(codebook_training.CodebookOptions):
  """Residual-quantized autoencoder (RQ-VAE, arXiv:2203.01941; TIGER).

  Encoder z = f(x); r_0 = z, q_l = argmin_e |r_l - e|, r_{l+1} = r_l - q_l;
  x^ = g(sum_l q_l). Loss: see `rqvae.loss`.
  """

  hierarchical: ClassVar[bool] = True
  fits_on_mesh: ClassVar[bool] = True

  hidden_dims: tuple[int, ...] = (512, 256, 128)
  code_dim: int = 32
  commitment_weight: float = 0.25  # beta
  estimator: str = "straight_through"  # rotation_trick, gumbel_softmax
  temperature: float = 1.0  # of gumbel_softmax and the entropy regularizer
  sinkhorn_epsilon: float = 0.0  # > 0: balanced choices while training
  entropy_weight: float = 0.0  # > 0: reward even usage within a batch

  def __post_init__(self):
    """Refuses impossible options."""
    super().__post_init__()
    checks.check_at_least(
      1, hidden_dims=self.hidden_dims, code_dim=self.code_dim
    )
    checks.check_at_least(
      0,
      commitment_weight=self.commitment_weight,
      sinkhorn_epsilon=self.sinkhorn_epsilon,
      entropy_weight=self.entropy_weight,
    )
    if not self.temperature > 0:
      raise checks.InputError(f"{self.temperature=}; want > 0.")
    estimators.check_estimator(self.estimator)

  def network(
    self, embedding_dim: int, *, training: bool
  ) -> rqvae.RQVAENetwork:
    """Returns the network; when encoding it computes in full float32.

    Args:
      embedding_dim: D.
      training: Use `compute_dtype` and the backend's matmul precision.
    """
    return rqvae.RQVAENetwork(
      embedding_dim=embedding_dim,
      hidden_dims=self.hidden_dims,
      code_dim=self.code_dim,
      quantizer=quantizer.ResidualQuantizer(
        codebook_sizes=self.codebook_sizes,
        code_dim=self.code_dim,
        estimator=self.estimator,
        temperature=self.temperature,
        sinkhorn_epsilon=self.sinkhorn_epsilon,
        use_entropy_gap=self.entropy_weight > 0,
      ),
      dtype=self.compute_dtype if training else "float32",
      precision=None if training else lax.Precision.HIGHEST,
    )

  def loss(self, params, x, *, key):
    """Implements `gradient_fit.Program`."""
    out = self.network(x.shape[1], training=True).apply(
      {"params": params}, x, key=key
    )
    total, metrics = rqvae.loss(
      x,
      out,
      commitment_weight=self.commitment_weight,
      codebook_weight=0.0 if self.ema_decay else 1.0,
      entropy_weight=self.entropy_weight,
    )
    seen = ()
    if self.ema_decay:
      seen = (out.quantizer.codes, out.quantizer.residuals)
    return total, (metrics, seen)

  def hard_codes(self, params, x):
    """Implements `CodebookOptions`."""
    return self.network(x.shape[1], training=True).apply(
      {"params": params}, x, method="encode"
    )

  def codebook_inputs(self, params, x):
    """Implements `CodebookOptions`."""
    return self.network(x.shape[1], training=True).apply(
      {"params": params}, x, method="codebook_inputs"
    )

  def init_params(
    self,
    x: Float[Array, "N D"],
    *,
    key: jax.Array,
    split: RowSplit | None = None,
  ) -> Any:
    """Draws networks and fills codebooks from latent residuals.

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
    codebooks = codebook_init.init_codebooks(
      latents,
      self.codebook_sizes,
      name=self.codebook_init,
      key=rng.stream(key, "codebooks"),
    )
    return self.with_codebooks(params, codebooks)

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: gradient_fit.TrainedState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[gradient_fit.TrainedState, base.FitReport]:
    """Trains networks and codebooks; `init` gives their first values.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration. Its
        normalization is kept, so that its networks see what they know.
      mesh: Devices that share rows and batches; None for one.

    Returns:
      The state; curves hold every loss term by epoch, and usage, dead codes
      and Gini of each level by round of `check_every_epochs`.

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
      name=type(self).__name__,
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
    self, state: gradient_fit.TrainedState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the nearest codes of every level, in full float32."""
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
