"""Half an hour of requests while engines, API workers and whole servers are killed."""
