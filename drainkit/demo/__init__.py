"""A sample backlog on a private server."""
