"""Launch arithmetic: kernels, grids, integers and workspaces of a call, without torch or Triton."""
