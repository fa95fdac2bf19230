"""Networks only: no data, no loss, no loop."""
