"""What outlives the server: SQLite files that its processes share."""
