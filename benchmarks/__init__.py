"""What is measured beside others, or alone: scripts/bench-peers, bench-frontend, bench-replicas."""
