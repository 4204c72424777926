"""What a job takes, before it runs: a rate is measured, a table of tiles is made."""
