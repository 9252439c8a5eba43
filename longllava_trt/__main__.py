"""Run the command line as `python -m longllava_trt`."""

from longllava_trt.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
