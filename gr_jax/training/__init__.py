"""Turns batches of tokens into parameters; knows no items."""
