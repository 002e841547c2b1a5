"""Ours and every peer, measured in one run: scripts/bench-peers --help."""
