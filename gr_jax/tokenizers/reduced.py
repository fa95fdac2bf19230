"""An autoencoder in front of any tokenizer, which codes its bottleneck."""

import dataclasses
import time
from typing import ClassVar, no_type_check

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32

from gr_jax.core import rng
from gr_jax.tokenizers import autoencoder, base, gradient_fit, reporting
from gr_jax.tokenizers.residual_kmeans import ResidualKMeans

_CHUNK = 1 << 16  # rows embedded at once


@no_type_check  # leaves may be shapes, or anything in a tree.map
@struct.dataclass
class ReducedState:
  """States of both parts."""

  reducer: gradient_fit.TrainedState
  quantizer: base.State


@dataclasses.dataclass(frozen=True)
class Reduced(autoencoder.Autoencoder):
  """Trains an autoencoder, then fits `quantizer` to its bottleneck z = f(x).

  Codes are those of z; a code's row is x^ = g(q(z)). Unlike RQ-VAE's, the
  networks never see the codes: |x - g(f(x))|^2, in the report as
  `unquantized_relative_mse`, is the error that they leave without any code,
  the ceiling of what a quantizer between such networks can keep. Any tokenizer
  can stand behind, whose width is then `code_dim`. Needs a row a code.
  """

  fits_on_mesh: ClassVar[bool] = True

  quantizer: base.Tokenizer = ResidualKMeans()

  @property
  def reducer(self) -> autoencoder.Autoencoder:
    """The autoencoder alone."""
    kind = autoencoder.VAE if self.variational else autoencoder.Autoencoder
    fields = dataclasses.fields(kind)
    return kind(**{f.name: getattr(self, f.name) for f in fields})

  @property
  def hierarchical(self) -> bool:
    """Whether levels refine each other, as those of `quantizer` do."""
    return self.quantizer.hierarchical

  @property
  def codebook_sizes(self) -> tuple[int, ...]:
    """K of every level of `quantizer`."""
    return self.quantizer.codebook_sizes

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: ReducedState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[ReducedState, base.FitReport]:
    """Trains the autoencoder, then fits the quantizer; `init` starts both.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share the rows, of the quantizer if it can; None for
        one.

    Returns:
      The state; curves are those of both parts.

    Raises:
      InputError: See `base.check_fit`; what either part refuses.
    """
    started = time.monotonic()
    # First: nothing shall be trained that the quantizer would then refuse.
    base.check_fit(
      x,
      self.codebook_sizes,
      init=init,
      template=self.abstract_state(x.shape[1]),
    )
    reducer, first = self.reducer.fit(
      x,
      key=rng.stream(key, "reducer"),
      init=None if init is None else init.reducer,
      mesh=mesh,
    )
    z = [
      np.asarray(self.reducer.embed(reducer, x[start : start + _CHUNK]))
      for start in range(0, x.shape[0], _CHUNK)
    ]
    shared = {}
    if mesh is not None and getattr(self.quantizer, "fits_on_mesh", False):
      shared["mesh"] = mesh
    quantizer, second = self.quantizer.fit(
      np.concatenate(z),
      key=rng.stream(key, "quantizer"),
      init=None if init is None else init.quantizer,
      **shared,
    )
    state = ReducedState(reducer, quantizer)
    report = reporting.fit_report(
      self,
      state,
      x,
      started=started,
      codes=second.codes,
      revived=second.revived,
      curves={
        **{f"reducer/{name}": curve for name, curve in first.curves.items()},
        **second.curves,
      },
    )
    return state, dataclasses.replace(
      report,
      alarms=second.alarms,
      unquantized_relative_mse=first.relative_mse,
    )

  def encode(
    self, state: ReducedState, x: Float[Array | np.ndarray, "B D"]
  ) -> Int32[Array, "B L"]:
    """Returns the quantizer's codes of the bottleneck."""
    z = self.reducer.embed(state.reducer, x)
    return self.quantizer.encode(state.quantizer, z)

  def decode(
    self, state: ReducedState, codes: Int[Array | np.ndarray, "B L"]
  ) -> Float[Array, "B D"]:
    """Returns what the decoder makes of the bottleneck that codes stand for."""
    z = self.quantizer.decode(state.quantizer, codes)
    return self.reducer.reconstruct(state.reducer, z)

  def abstract_state(self, embedding_dim: int) -> ReducedState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return ReducedState(
      reducer=self.reducer.abstract_state(embedding_dim),
      quantizer=self.quantizer.abstract_state(self.code_dim),
    )


@dataclasses.dataclass(frozen=True)
class ReducedVariational(Reduced, autoencoder.VAE):
  """`Reduced` by a variational autoencoder; codes are those of its mean."""
