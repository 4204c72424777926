"""Triton kernels, one op a file: a kernel and the plain function that launches it on tensors."""
