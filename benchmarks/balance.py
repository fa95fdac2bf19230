"""Compares balanced, Sinkhorn and free residual k-means on data sets.

  python benchmarks/balance.py DATA/beauty DATA/toys

Prints a Markdown table; needs each folder's embeddings.minilm file. Codes are
those of the fitted items. Mean over seeds 0 to 2.
"""

import argparse
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from gr_jax.stages import prepare, runs
from gr_jax.stages.config import RunConfig
from gr_jax.stages.workdir import Workdir
from gr_jax.tokenizers import TOKENIZERS

ROWS = {
  "residual_kmeans": {},
  "sinkhorn_residual_kmeans": {},
  "balanced_residual_kmeans": {},
  "balanced_residual_kmeans, slack 0": {"slack": 0.0},
  "balanced_residual_kmeans, slack 0.1": {"slack": 0.1},
  "balanced_residual_kmeans, slack 0.5": {"slack": 0.5},
}
COLUMNS = (
  "data",
  "tokenizer",
  "entropy by level (nats)",
  "largest share of a code, level 1",
  "items sharing their codes",
  "relative error",
  "seconds",
)


def vectors_of(folder: str) -> jax.Array:
  """Embeds a data folder as the pipeline would."""
  c = common.amazon2014("")
  c.data.path = folder
  config = RunConfig.from_dict(c.to_dict())
  with tempfile.TemporaryDirectory() as temporary:
    workdir = Workdir(pathlib.Path(temporary) / "run")
    runs.embed(config, workdir)
    stored = prepare.load_data(workdir)
    return jnp.asarray(prepare.load_embeddings(workdir, stored)[1].vectors)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("folders", nargs="+", help="data folders")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--codes", type=int, default=256, help="K, three levels")
  parser.add_argument("--rows", default=";".join(ROWS), help="some of these")
  args = parser.parse_args()
  print("| " + " | ".join(COLUMNS) + " |")
  print("| --- | --- |" + " ---: |" * (len(COLUMNS) - 2))
  for folder in args.folders:
    x = vectors_of(folder)
    for name in filter(None, args.rows.split(";")):
      kind, sizes = name.split(",")[0], (args.codes,) * 3
      tokenizer = TOKENIZERS[kind](codebook_sizes=sizes, **ROWS[name])
      reports = [
        tokenizer.fit(x, key=jax.random.key(seed))[1]
        for seed in range(args.seeds)
      ]
      entropy = np.log([report.perplexity for report in reports]).mean(0)
      top = [np.bincount(report.codes[:, 0]).max() for report in reports]
      shared = [report.collision_rate for report in reports]
      cells = (
        pathlib.Path(folder).name,
        name,
        " ".join(f"{e:.2f}" for e in entropy),
        f"{100 * np.mean(top) / len(x):.2f} %",
        f"{100 * np.mean(shared):.1f} %",
        f"{np.mean([report.relative_mse for report in reports]):.3f}",
        f"{np.median([report.seconds for report in reports]):.1f}",
      )
      print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
  main()
