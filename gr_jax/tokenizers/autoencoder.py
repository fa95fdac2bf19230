"""Un-quantized bottlenecks: the ceiling that quantizers are compared with.

Also a dimension reducer in front of any of them. These write no codes, so
their contract is smaller: fit, embed, reconstruct, abstract_state.
"""

import dataclasses
import time
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from gr_jax.core import checks, rng
from gr_jax.core.row_split import RowSplit
from gr_jax.tokenizers import base, gradient_fit, reporting, rqvae


@dataclasses.dataclass(frozen=True)
class AutoencoderReport:
  """What a fit did, measured on every row that it read."""

  num_rows: int  # N
  mse: float  # mean over rows of |x - reconstruct(embed(x))|^2
  relative_mse: float  # the same over that of predicting the mean row
  curves: dict[str, np.ndarray]  # each loss term by epoch
  seconds: float  # wall time of the fit, compilation included


def kl_divergence(
  mean: Float[Array, "B C"], log_variance: Float[Array, "B C"]
) -> Float[Array, " B"]:
  """KL(N(mean, exp(log_variance)) || N(0, 1)), summed over dimensions.

  1/2 sum (mean^2 + exp(log_variance) - 1 - log_variance) (Kingma and Welling
  2014, arXiv:1312.6114, appendix B).
  """
  terms = jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance
  return 0.5 * jnp.sum(terms, axis=-1)


class AutoencoderNetwork(nn.Module):
  """x -> encoder -> (mean, log variance or nothing) -> decoder -> x^."""

  embedding_dim: int
  hidden_dims: tuple[int, ...]
  code_dim: int
  variational: bool
  dtype: str = "float32"
  precision: lax.Precision | None = None

  def setup(self) -> None:
    """Makes encoder and decoder."""
    width = self.code_dim * (2 if self.variational else 1)
    self.encoder = rqvae.MLP(
      (*self.hidden_dims, width), self.dtype, self.precision
    )
    self.decoder = rqvae.MLP(
      (*self.hidden_dims[::-1], self.embedding_dim), self.dtype, self.precision
    )

  def __call__(
    self, x: Float[Array, "B D"], *, key: jax.Array | None = None
  ) -> tuple[Float[Array, "B D"], Float[Array, ""]]:
    """Returns the reconstruction and the mean KL divergence of a batch."""
    z = self.encoder(x)
    if not self.variational:
      return self.decoder(z), jnp.float32(0.0)
    mean, log_variance = jnp.split(z, 2, axis=-1)
    if key is not None:
      noise = jax.random.normal(key, mean.shape)
      # z = mean + sigma * noise: the gradient reaches mean and sigma.
      z = mean + jnp.exp(0.5 * log_variance) * noise
    else:
      z = mean
    return self.decoder(z), jnp.mean(kl_divergence(mean, log_variance))

  def encode(self, x: Float[Array, "B D"]) -> Float[Array, "B C"]:
    """Returns the bottleneck; of a VAE, its mean."""
    return self.encoder(x)[:, : self.code_dim]

  def decode(self, z: Float[Array, "B C"]) -> Float[Array, "B D"]:
    """Returns the decoder's output."""
    return self.decoder(z)


@dataclasses.dataclass(frozen=True)
class Autoencoder(gradient_fit.GradientOptions):
  """Autoencoder with a narrow middle; minimizes the mean of |x - x^|^2."""

  variational: ClassVar[bool] = False

  hidden_dims: tuple[int, ...] = (512, 256, 128)
  code_dim: int = 32

  def __post_init__(self):
    """Refuses impossible options."""
    self.check_options()
    checks.check_at_least(
      1, hidden_dims=self.hidden_dims, code_dim=self.code_dim
    )

  def network(
    self, embedding_dim: int, *, training: bool
  ) -> AutoencoderNetwork:
    """Returns the network; outside training it computes in full float32."""
    return AutoencoderNetwork(
      embedding_dim=embedding_dim,
      hidden_dims=self.hidden_dims,
      code_dim=self.code_dim,
      variational=self.variational,
      dtype=self.compute_dtype if training else "float32",
      precision=None if training else lax.Precision.HIGHEST,
    )

  def loss(self, params, x, *, key):
    """Implements `gradient_fit.Program`."""
    network = self.network(x.shape[1], training=True)
    decoded, kl = network.apply({"params": params}, x, key=key)
    reconstruction = jnp.mean(jnp.square(x - decoded))
    total = reconstruction + self.divergence_weight(x.shape[1]) * kl
    return total, (
      {"loss": total, "reconstruction": reconstruction, "kl": kl},
      (),
    )

  def divergence_weight(self, embedding_dim: int) -> float:
    """Returns the weight of the KL term."""
    del embedding_dim
    return 0.0

  def after_step(self, params, extra, seen):
    """Implements `gradient_fit.Program`: nothing to do."""
    del seen
    return params, extra

  def check(self, params, extra, x, *, key, revive, split=None):
    """Implements `gradient_fit.Program`: nothing to look at."""
    del x, key, revive, split
    return params, extra, ()

  def fit(
    self,
    x: Float[Array | np.ndarray, "N D"],
    *,
    key: jax.Array,
    init: gradient_fit.TrainedState | None = None,
    mesh: Mesh | None = None,
  ) -> tuple[gradient_fit.TrainedState, AutoencoderReport]:
    """Trains encoder and decoder; `init` gives their first values.

    Args:
      x: float32, one row an item.
      key: Random key.
      init: State of an earlier fit with the same configuration.
      mesh: Devices that share rows and batches; None for one.

    Raises:
      InputError: See `base.check_fit`; the loss is not finite.
    """
    started = time.monotonic()
    base.check_fit(x, init=init, template=self.abstract_state(x.shape[1]))
    split = None if mesh is None else RowSplit(mesh, x.shape[0])
    normalization, rows = gradient_fit.prepare(
      x, standardize=self.standardize, init=init, split=split
    )
    if init is None:
      network = self.network(x.shape[1], training=False)
      params = gradient_fit.init_network(
        network, jnp.zeros((1, x.shape[1])), key=rng.stream(key, "networks")
      )
    else:
      params = jax.tree.map(jnp.array, init.params)  # a copy: it is donated
    outcome = gradient_fit.fit(
      self, params, (), rows, key=key, name=type(self).__name__, split=split
    )
    state = gradient_fit.TrainedState(outcome.params, normalization)
    mse, relative = reporting.reconstruction_errors(
      [x],
      lambda rows: self.reconstruct(state, self.embed(state, rows)),
    )
    return state, AutoencoderReport(
      num_rows=x.shape[0],
      mse=mse,
      relative_mse=relative,
      curves=outcome.curves,
      seconds=time.monotonic() - started,
    )

  def embed(
    self,
    state: gradient_fit.TrainedState,
    x: Float[Array | np.ndarray, "B D"],
  ) -> Float[Array, "B C"]:
    """Returns the bottleneck of rows; of a VAE, its mean."""
    base.check_rows(x, state.normalization.mean.shape[0])
    return gradient_fit.encode_with(self, state, x)

  def reconstruct(
    self, state: gradient_fit.TrainedState, z: Float[Array, "B C"]
  ) -> Float[Array, "B D"]:
    """Returns the rows that bottlenecks stand for."""
    return gradient_fit.decode_with(self, state, z)

  def abstract_state(self, embedding_dim: int) -> gradient_fit.TrainedState:
    """Returns the state's shapes for rows of width `embedding_dim`."""
    return gradient_fit.abstract_trained(
      self.network(embedding_dim, training=False), embedding_dim
    )


@dataclasses.dataclass(frozen=True)
class VAE(Autoencoder):
  """Variational autoencoder (Kingma and Welling 2014, arXiv:1312.6114).

  Mean over rows and dimensions of |x - x^|^2 plus beta / D times the KL
  divergence from a standard normal, with the reparameterization trick. beta 2
  makes it the evidence bound of a unit-variance Gaussian, up to a factor.
  """

  variational: ClassVar[bool] = True

  beta: float = 0.1

  def __post_init__(self):
    """Refuses impossible options."""
    super().__post_init__()
    checks.check_at_least(0, beta=self.beta)

  def divergence_weight(self, embedding_dim: int) -> float:
    """Returns beta / D, since the reconstruction is a mean over D."""
    return self.beta / embedding_dim
