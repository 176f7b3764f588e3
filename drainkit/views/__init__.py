"""What the notebooks show: a module for each of a run's, and one for the boards. In a kernel."""
