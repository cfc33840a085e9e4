"""`python -m mrfomm.doctor`."""

from mrfomm.commands.doctor import main
from mrfomm.errors import run_command

if __name__ == "__main__":
    run_command(main)
