"""`python -m eggroll` is the command `eggroll`."""

from eggroll.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
