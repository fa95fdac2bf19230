r"""Fits the tokenizer and writes the semantic IDs.

python -m launch.tokenize --workdir=runs/quickstart
"""

from gr_jax import stages
from launch import app

if __name__ == "__main__":
  app.run(stages.tokenize)
