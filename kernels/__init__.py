"""What runs on a GPU: triton/ as source, cuda/ compiled ahead of time into tessera_fast._cuda."""
