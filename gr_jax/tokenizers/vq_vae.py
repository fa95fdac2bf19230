"""VQ-VAE: one codebook between an encoder and a decoder."""

import dataclasses

from gr_jax.core import checks
from gr_jax.tokenizers import rqvae_fit


@dataclasses.dataclass(frozen=True)
class VQVAE(rqvae_fit.RQVAE):
  """Vector-quantized autoencoder (van den Oord et al. 2017, arXiv:1711.00937).

  |x - x^|^2 + |sg[z] - e|^2 + beta |z - sg[e]|^2 (eq. 3): RQ-VAE's loss with
  one level, which is what this is.
  """

  codebook_sizes: tuple[int, ...] = (8192,)

  def __post_init__(self):
    """Refuses more than one level."""
    super().__post_init__()
    if len(self.codebook_sizes) != 1:
      raise checks.InputError(
        f"vq_vae has one level; got codebook_sizes={self.codebook_sizes}. Use "
        "rq_vae for more."
      )
