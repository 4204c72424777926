"""Drawing without a plotting library: letters."""
