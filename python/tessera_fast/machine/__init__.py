"""What this process runs on and in: CPUs, memory, control groups, energy, a notebook."""
