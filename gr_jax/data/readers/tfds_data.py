"""Public data sets by TensorFlow Datasets, which downloads them itself."""

import dataclasses
import importlib

from gr_jax.core import checks
from gr_jax.core.checks import InputError
from gr_jax.data.dataset import Dataset

# builder -> module, class
_BUILDERS = {
  "amazon2014": ("gr_jax.data.readers.tfds_amazon2014", "Amazon2014"),
  "movielens1m": ("gr_jax.data.readers.tfds_movielens1m", "MovieLens1M"),
}


@dataclasses.dataclass(frozen=True)
class TfdsData:
  """A builder of this project, downloaded and prepared on first use.

  Attributes:
    builder: "amazon2014" or "movielens1m".
    subset: The builder's config of users, e.g. "beauty".
    data_dir: Where TFDS keeps prepared data; empty for its default.
  """

  builder: str = "amazon2014"
  subset: str = "beauty"
  data_dir: str = ""

  def load(self) -> Dataset:
    """Prepares the data where needed and reads it.

    Raises:
      InputError: Unknown builder or subset; tensorflow-datasets is missing;
        the counts are not the published ones.
    """
    checks.check_known(self.builder, _BUILDERS, "TFDS builder")
    module, name = _BUILDERS[self.builder]
    try:
      builder_module = importlib.import_module(module)
    except ImportError as error:
      raise InputError(
        f"data 'tfds' needs tensorflow-datasets ({error}); install "
        "requirements.txt, or read the raw files with data 'amazon2014' or "
        "'movielens1m'."
      ) from error
    checks.check_known(
      self.subset, builder_module.SUBSETS, f"subset of {self.builder}"
    )
    sequences = importlib.import_module("gr_jax.data.readers.tfds_sequences")
    return sequences.read_prepared(
      getattr(builder_module, name), self.subset, self.data_dir or None
    )
