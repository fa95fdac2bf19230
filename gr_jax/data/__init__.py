"""Who chose what and when: catalogs, interactions, splits, readers."""

from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset, DatasetConfig
from gr_jax.data.interactions import Interactions
from gr_jax.data.readers.folder import FolderData
from gr_jax.data.splits import Examples, Split
from gr_jax.data.synthetic import SyntheticData

DATASETS = {
  "folder": FolderData,
  "synthetic": SyntheticData,
}

__all__ = [
  "DATASETS",
  "Dataset",
  "DatasetConfig",
  "Examples",
  "Interactions",
  "ItemCatalog",
  "Split",
]
