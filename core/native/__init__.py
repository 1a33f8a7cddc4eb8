"""Kernels in C++ for any processor that a compiler targets: sources, and how they are compiled and loaded.

csrc/         the sources, in the compiler's own vector types; csrc/generic/isa.h is the default of what a
              platform may write better for its instruction set
toolchain.py  compiles them once per machine and keeps the library in the cache
library.py    loads the library beside torch
platform.py   what the platforms that use them have in common
cores.py      which processors to use: one of each core
execution.py  a thread for each of them, pinned

Used by platforms, each with flags and headers of its own. Names no processor.
"""
