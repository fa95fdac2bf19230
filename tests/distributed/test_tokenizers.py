"""Tokenizers fitted by two processes, each with half of the items."""

import numpy as np
import pytest

SCRIPT = """
import json, pathlib, sys
import jax
import numpy as np
from gr_jax.core import mesh
from gr_jax.tokenizers import TOKENIZERS

coordinator, count, me = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if count > 1:
  jax.distributed.initialize(coordinator, count, me)
grid = mesh.make_mesh(jax.devices())
assert grid.size == 2
rng = np.random.default_rng(0)
centers = 10 * rng.normal(size=(5, 6))
x = centers[rng.integers(0, 5, 81)] + rng.normal(size=(81, 6))
fits = []
short = dict(num_epochs=10, batch_size=32, hidden_dims=(8,), code_dim=4)
sizes = dict(codebook_sizes=(5, 3))
residual = TOKENIZERS["residual_kmeans"](**sizes)
for name, options in {
  "residual_kmeans": sizes,
  "balanced_residual_kmeans": sizes | dict(order="random", max_iters=4),
  "minibatch_residual_kmeans": sizes | dict(batch_size=30, num_passes=2),
  "sinkhorn_residual_kmeans": sizes | dict(max_iters=3),
  "rq_opq": dict(residual_sizes=(5,), subspace_sizes=(3, 2), num_iters=3),
  "rq_vae": sizes | short,
  "autoencoder": short | dict(quantizer=residual),
}.items():
  tokenizer = TOKENIZERS[name](**options)
  _, report = tokenizer.fit(
    x.astype(np.float32), key=jax.random.key(0), mesh=grid
  )
  curves = {k: np.asarray(v).tolist() for k, v in report.curves.items()}
  fits.append([name, report.codes.tolist(), curves])
pathlib.Path(sys.argv[4]).write_text(json.dumps(fits))
"""


@pytest.mark.slow
def test_two_processes_fit_as_one(results_of):
  (want,) = results_of(SCRIPT, num_processes=1, devices=2)
  assert len(want) == 7
  for got in results_of(SCRIPT, num_processes=2, devices=1):
    for (name, codes, curves), (_, other, expected) in zip(
      got, want, strict=True
    ):
      np.testing.assert_array_equal(codes, other, err_msg=name)
      assert curves.keys() == expected.keys()
      for curve, values in curves.items():
        np.testing.assert_allclose(
          values, expected[curve], rtol=1e-5, atol=1e-5, err_msg=curve
        )
