"""Residual vector quantization trained by gradient, with no encoder."""

import dataclasses
import time
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import rng
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import (
  base,
  codebook_init,
  codebook_training,
  gradient_fit,
  kmeans,
  quantizer,
  reporting,
  residual_kmeans,
)

_INIT_ROWS_PER_CODE = 64


@dataclasses.dataclass(frozen=True)
class RVQ(codebook_training.CodebookOptions):
  """Residual vector quantization by minibatch gradient or EMA (GRID's R-VQ).

  r_0 = x, q_l = argmin_e |r_l - e|, r_{l+1} = r_l - sg[q_l]; the loss is
  sum_l |sg[r_l] - q_l|^2. Unlike residual k-means, all levels move at once,
  on minibatches, and a code moves by a step, not to its mean.
  """

  hierarchical: ClassVar[bool] = True
  fits_on_mesh: ClassVar[bool] = True

  learning_rate: float = 1e-2
  standardize: bool = False  # distances are those of the embeddings

  def _quantizer(self, width: int) -> quantizer.ResidualQuantizer:
    return quantizer.ResidualQuantizer(self.codebook_sizes, width)

  def _apply(self, params, x, method):
    return self._quantizer(x.shape[1]).apply(
      {"params": params["quantizer"]}, x, method=method
    )

  def loss(self, params, x, *, key):
    """Implements `gradient_fit.Program`."""
    del key
    out = self._quantizer(x.shape[1]).apply({"params": params["quantizer"]}, x)
    metrics = {
      "loss": out.codebook_loss,
      "reconstruction": jnp.mean(jnp.square(x - out.quantized)),
    }
    # EMA codebooks have no gradient to follow, but the loop takes one.
    total = out.codebook_loss * (0.0 if self.ema_decay else 1.0)
    return total, (
      metrics,
      (out.codes, out.residuals) if self.ema_decay else (),
    )

  def hard_codes(self, params, x):
    """Implements `CodebookOptions`."""
    return self._apply(params, x, "codes")

  def codebook_inputs(self, params, x):
    """Implements `CodebookOptions`."""
    return self._apply(params, x, "inputs")

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: gradient_fit.TrainedState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[gradient_fit.TrainedState, base.FitReport]:
    """Trains all codebooks; `init` gives their first values.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share rows and batches; None for one.

    Returns:
      The state; curves hold the loss by epoch and the usage by round.

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
      sample = kmeans.sample_rows(
        rows,
        _INIT_ROWS_PER_CODE * max(self.codebook_sizes),
        rng.stream(key, "rows"),
        split=split,
      )
      codebooks = codebook_init.init_codebooks(
        sample,
        self.codebook_sizes,
        name=self.codebook_init,
        key=rng.stream(key, "codebooks"),
      )
      params = self.with_codebooks({}, codebooks)
    else:
      params = jax.tree.map(jnp.array, init.params)  # a copy: it is donated
    outcome = gradient_fit.fit(
      self,
      params,
      self.start_extra(params),
      rows,
      key=key,
      name="RVQ",
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
    """Returns the codes of rows, nearest code level by level."""
    base.check_rows(x, state.normalization.mean.shape[0])
    x = gradient_fit.normalize(state.normalization, x)
    return residual_kmeans.encode_residual(self._state(state.params), x)

  def decode(
    self,
    state: gradient_fit.TrainedState,
    codes: Int[Array | np.ndarray, "B L"],
  ) -> Float[Array, "B D"]:
    """Returns the sum of the chosen codes, in the input's units."""
    base.check_codes(codes, self.codebook_sizes)
    total = residual_kmeans.decode_sum(self._state(state.params), codes)
    return gradient_fit.denormalize(state.normalization, total)

  def _state(self, params: Any) -> residual_kmeans.CodebooksState:
    return residual_kmeans.CodebooksState(tuple(self.codebooks(params)))

  def abstract_state(self, embedding_dim: int) -> gradient_fit.TrainedState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    shapes = residual_kmeans.abstract_codebooks(
      self.codebook_sizes, embedding_dim
    )
    return gradient_fit.TrainedState(
      params=self.with_codebooks({}, shapes.codebooks),
      normalization=gradient_fit.abstract_normalization(embedding_dim),
    )
