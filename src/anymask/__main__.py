"""`python -m anymask`: the same as the command `anymask`."""

from anymask.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
