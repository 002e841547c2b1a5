"""The machine: what it has, what it lacks, how it gets it."""
