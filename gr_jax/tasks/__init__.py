"""From user histories to token examples."""
