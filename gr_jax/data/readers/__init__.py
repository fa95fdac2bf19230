"""One reader a public data set: raw files to catalog and interactions."""
