r"""Reads or makes the data set and embeds its items.

python -m launch.embed --config=configs/quickstart.py --workdir=runs/quickstart
"""

from gr_jax import stages
from launch import app

if __name__ == "__main__":
  app.run(stages.embed)
