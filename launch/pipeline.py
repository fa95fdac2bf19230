r"""Runs every stage that is not done yet, from item texts to the metrics.

  python -m launch.pipeline --config=configs/quickstart.py \
    --workdir=runs/quickstart
"""

from gr_jax import stages
from launch import app

if __name__ == "__main__":
  app.run(stages.pipeline)
