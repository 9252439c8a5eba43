"""The plugin library: Triton kernels compiled ahead of time and C++, in one shared library."""
