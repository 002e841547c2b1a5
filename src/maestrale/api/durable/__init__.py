"""Answers that can be asked for again: after a lost connection, or with an Idempotency-Key."""
