"""Bit-exact golden models of low-bit kernels: what hardware units must compute, to the last bit."""
