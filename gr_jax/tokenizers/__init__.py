"""Tokenizers: maps between item embeddings and codes, one method a file."""

from gr_jax.tokenizers.balanced import BalancedResidualKMeans
from gr_jax.tokenizers.fsq import FSQ
from gr_jax.tokenizers.lsh import LSH
from gr_jax.tokenizers.minibatch import MiniBatchResidualKMeans
from gr_jax.tokenizers.opmq import OPMQ
from gr_jax.tokenizers.opq import OPQ
from gr_jax.tokenizers.pq import PQ
from gr_jax.tokenizers.random_codes import RandomCodes
from gr_jax.tokenizers.reduced import Reduced, ReducedVariational
from gr_jax.tokenizers.residual_kmeans import ResidualKMeans
from gr_jax.tokenizers.rq_opq import RQOPQ
from gr_jax.tokenizers.rqvae_fit import RQVAE
from gr_jax.tokenizers.rvq import RVQ
from gr_jax.tokenizers.sinkhorn import SinkhornResidualKMeans
from gr_jax.tokenizers.vq_vae import VQVAE

TOKENIZERS = {
  "autoencoder": Reduced,
  "balanced_residual_kmeans": BalancedResidualKMeans,
  "fsq": FSQ,
  "lsh": LSH,
  "minibatch_residual_kmeans": MiniBatchResidualKMeans,
  "opmq": OPMQ,
  "opq": OPQ,
  "pq": PQ,
  "random": RandomCodes,
  "residual_kmeans": ResidualKMeans,
  "rq_opq": RQOPQ,
  "rq_vae": RQVAE,
  "rvq": RVQ,
  "sinkhorn_residual_kmeans": SinkhornResidualKMeans,
  "vae": ReducedVariational,
  "vq_vae": VQVAE,
}
