"""What each notebook shows: one module for each notebook, of its name. Runs inside a kernel."""
