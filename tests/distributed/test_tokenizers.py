"""Tokenizers fitted by two processes, each with half of the items."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = """
import json, sys
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
  print("FIT", json.dumps([name, report.codes.tolist(), curves]))
"""


def _fits(coordinator, count):
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={2 // count}",
  }
  jobs = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, coordinator, str(count), str(index)],
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=environment,
      cwd=pathlib.Path(__file__).parents[2],
    )
    for index in range(count)
  ]
  outputs = [job.communicate(timeout=300) for job in jobs]
  assert [job.returncode for job in jobs] == [0] * count, outputs
  return [
    [json.loads(x[4:]) for x in out.splitlines() if x.startswith("FIT ")]
    for out, _ in outputs
  ]


@pytest.mark.slow
def test_two_processes_fit_as_one(free_port):
  (want,) = _fits("", 1)
  assert len(want) == 7
  for got in _fits(f"127.0.0.1:{free_port}", 2):
    for (name, codes, curves), (_, other, expected) in zip(
      got, want, strict=True
    ):
      np.testing.assert_array_equal(codes, other, err_msg=name)
      assert curves.keys() == expected.keys()
      for curve, values in curves.items():
        np.testing.assert_allclose(
          values, expected[curve], rtol=1e-5, atol=1e-5, err_msg=curve
        )
