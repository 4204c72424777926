"""A loaded model: parameters in an engine, and the ways to call it."""
