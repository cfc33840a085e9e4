"""`python -m mrfomm.convert`."""

from mrfomm.convert.conversion import main
from mrfomm.errors import run_command

if __name__ == "__main__":
    run_command(main)
