"""Instruction sets: inner products written for them, and the compiler flags that allow them."""
