"""Stage 10: the trained generator against the baselines, on the test items."""

