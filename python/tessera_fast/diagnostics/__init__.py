"""What runs here, whether it gives the right numbers, and where the time goes."""
