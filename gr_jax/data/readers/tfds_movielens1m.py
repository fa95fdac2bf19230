"""TensorFlow Datasets builder of MovieLens-1M; imports TFDS.

Checksums: see `tfds_sequences`.
"""

import tensorflow_datasets as tfds
from etils import epath

from gr_jax.data.dataset import Dataset
from gr_jax.data.readers import movielens1m, tfds_sequences

# Config name -> k of the k-core.
SUBSETS = {"core": str(movielens1m.CORE), "all": "1"}


class MovieLens1M(tfds_sequences.SequencesBuilder):
  """MovieLens-1M, leave-one-out."""

  name = "movielens1m"
  # TFDS 4.9.10 finds it by importlib_resources, which it does not require.
  code_path = epath.Path(__file__)
  BUILDER_CONFIGS = tfds_sequences.make_configs(SUBSETS)
  DESCRIPTION = "MovieLens-1M ratings as interactions, leave-one-out."
  HOMEPAGE = "https://grouplens.org/datasets/movielens/1m/"
  CITATION = (
    "@article{harper2015movielens, title={The MovieLens Datasets: History and "
    "Context}, author={Harper, F. Maxwell and Konstan, Joseph A.}, "
    "journal={ACM TiiS}, year={2015}}"
  )

  def _read(self, dl_manager: tfds.download.DownloadManager) -> Dataset:
    folder = dl_manager.download_and_extract(movielens1m.SOURCE) / "ml-1m"
    min_interactions = int(self.builder_config.subset)
    data = movielens1m.read_raw(
      folder / "ratings.dat",
      folder / "movies.dat",
      min_interactions=min_interactions,
    )
    movielens1m.check_published(min_interactions, data)
    return data
