"""Many tiles to one output: sources, tasks, the runner, executors, the report."""
