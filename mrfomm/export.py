"""`python -m mrfomm.export`."""

from mrfomm.commands.export import main
from mrfomm.errors import run_command

if __name__ == "__main__":
    run_command(main)
