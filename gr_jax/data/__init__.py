"""Who chose what and when: catalogs, interactions, splits, readers."""

from gr_jax.data.catalog import ItemCatalog
from gr_jax.data.dataset import Dataset, DatasetConfig
from gr_jax.data.interactions import Interactions
from gr_jax.data.readers.amazon2014 import Amazon2014Data
from gr_jax.data.readers.folder import FolderData
from gr_jax.data.readers.movielens1m import MovieLens1MData
from gr_jax.data.readers.tfds_data import TfdsData
from gr_jax.data.splits import Examples, Split
from gr_jax.data.synthetic import SyntheticData

DATASETS = {
  "amazon2014": Amazon2014Data,
  "folder": FolderData,
  "movielens1m": MovieLens1MData,
  "synthetic": SyntheticData,
  "tfds": TfdsData,
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
