"""`python -m mrfomm.export`."""

from mrfomm.commands.export import command

if __name__ == "__main__":
    command()
