"""Triton kernels, one module per op; installed as diverseevol_fast.triton_ops. Imported only when used."""
