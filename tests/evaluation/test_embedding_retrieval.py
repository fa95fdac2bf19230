import numpy as np
import pytest

from gr_jax.core.checks import InputError
from gr_jax.evaluation import embedding_retrieval as retrieval

needs_faiss = pytest.mark.skipif(
  not retrieval.has_hnsw(), reason="pip install faiss-cpu"
)
KINDS = [
  retrieval.BruteForce,
  pytest.param(retrieval.Hnsw, marks=needs_faiss),
]


def test_weights_by_hand():
  histories = np.array([[7, 8, 9], [4, -1, -1], [-1, -1, -1]], np.int32)
  weight = np.asarray(retrieval.weights(histories, 0.5))
  assert weight.tolist() == [[0.25, 0.5, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
  last = np.asarray(retrieval.weights(histories, 0.0))
  assert last[0].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_two_dimensions_by_hand(kind):
  angles = np.deg2rad([0, 10, 30, 100, 20])
  vectors = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
  vectors[1] *= 7.0  # length means nothing
  can_come = np.array([True, True, True, True, False])
  histories = np.array([[3, 0], [1, -1]], np.int32)
  index = kind(vectors, can_come, recency=0.0, list_size=4)
  # Item 4 cannot come; what is in the history does not come again.
  assert index.search(histories).tolist() == [[1, 2, -1, -1], [0, 2, 3, -1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recency", [0.0, 0.6, 1.0])
def test_equals_numpy(kind, recency):
  rng = np.random.default_rng(0)
  vectors = rng.standard_normal((60, 8)).astype(np.float32)
  histories = rng.permuted(np.tile(np.arange(60), (9, 1)), axis=1)[:, :5]
  histories[3, 2:] = -1
  found = kind(vectors, np.ones(60, bool), recency=recency, list_size=7).search(
    histories.astype(np.int32)
  )
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  for row, history in enumerate(histories):
    own = history[history >= 0]
    query = sum(
      recency**age * unit[item].astype(np.float64)
      for age, item in enumerate(own[::-1])
    )
    scores = unit @ query
    scores[own] = -np.inf
    assert found[row].tolist() == np.argsort(-scores)[:7].tolist()


def test_refusals(monkeypatch):
  vectors = np.ones((4, 2), np.float32)
  can_come = np.array([True, True, True, False])

  def make(kind=retrieval.BruteForce, recency=0.5, list_size=2):
    return kind(vectors, can_come, recency=recency, list_size=list_size)

  with pytest.raises(InputError, match="recency=1.5 must lie between 0"):
    make(recency=1.5)
  with pytest.raises(InputError, match="Lists of 4 items from 3; ask for"):
    make(list_size=4)
  monkeypatch.setattr(retrieval, "has_hnsw", lambda: False)
  with pytest.raises(InputError, match="needs faiss; pip install faiss-cpu"):
    make(retrieval.Hnsw)
