"""TensorFlow Datasets builder of Amazon 2014 5-core; imports TFDS.

Checksums: see `tfds_sequences`.
"""

import tensorflow_datasets as tfds
from etils import epath

from gr_jax.data.dataset import Dataset
from gr_jax.data.readers import amazon2014, tfds_sequences

SUBSETS = {
  "beauty": "Beauty",
  "sports_and_outdoors": "Sports_and_Outdoors",
  "toys_and_games": "Toys_and_Games",
}


class Amazon2014(tfds_sequences.SequencesBuilder):
  """Amazon 2014 5-core, leave-one-out."""

  # TFDS 4.9.10 finds it by importlib_resources, which it does not require.
  code_path = epath.Path(__file__)
  BUILDER_CONFIGS = tfds_sequences.make_configs(SUBSETS)
  DESCRIPTION = "Amazon product reviews until 2014, 5-core, leave-one-out."
  HOMEPAGE = "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html"
  CITATION = (
    "@inproceedings{mcauley2015image, title={Image-based recommendations on "
    "styles and substitutes}, author={McAuley, Julian and Targett, "
    "Christopher and Shi, Qinfeng and Van Den Hengel, Anton}, "
    "booktitle={SIGIR}, year={2015}}"
  )

  def _read(self, dl_manager: tfds.download.DownloadManager) -> Dataset:
    category = self.builder_config.subset
    reviews, metadata = amazon2014.file_names(category)
    files = dl_manager.download(
      {
        "reviews": amazon2014.SOURCE + reviews,
        "metadata": amazon2014.SOURCE + metadata,
      }
    )
    data = amazon2014.read_raw(files["reviews"], files["metadata"])
    amazon2014.check_published(category, data)
    return data
