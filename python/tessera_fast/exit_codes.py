"""What the command line returns to the shell; argparse itself returns 2 for wrong usage."""

OK, FAILED, PARTLY, INTERRUPTED, BROKEN_PIPE, TERMINATED = 0, 1, 3, 130, 141, 143
