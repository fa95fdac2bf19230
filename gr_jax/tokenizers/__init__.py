"""Tokenizers: maps between item embeddings and codes, one method a file."""

from gr_jax.tokenizers.residual_kmeans import ResidualKMeans
from gr_jax.tokenizers.rqvae_fit import RQVAE

TOKENIZERS = {
  "residual_kmeans": ResidualKMeans,
  "rq_vae": RQVAE,
}
