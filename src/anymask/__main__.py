"""`python -m anymask`: the same as the command `anymask`."""

from anymask.cli.main import command

if __name__ == "__main__":
    command()
