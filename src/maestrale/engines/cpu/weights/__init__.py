"""Weights of a model: tensors by name in mapped files, and where in them each matrix lies."""
