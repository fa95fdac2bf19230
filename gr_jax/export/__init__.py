"""Everything that serving needs, in one artifact."""
