r"""Ranks the test items and prints the metrics table.

python -m launch.evaluate --workdir=runs/quickstart
"""

from gr_jax import stages
from launch import app

if __name__ == "__main__":
  app.run(stages.evaluate)
