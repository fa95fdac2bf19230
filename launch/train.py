r"""Trains the generator; resumes a run that was cut off.

python -m launch.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from gr_jax import stages
from launch import app

if __name__ == "__main__":
  app.run(stages.train)
