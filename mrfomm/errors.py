"""The one exception for bad input, and the wrapper every command runs in."""

import os
import sys


class UserError(Exception):
    """Bad input: a file, key or argument that the person at the keyboard can mend.

    The message is one line that names the file or key and the remedy. Commands print it and exit with 2.
    """


def run_command(main):
    """Run ``main()``; turn a :class:`UserError` into one line on stderr and exit code 2.

    Ctrl-C exits with 130 and a closed pipe with 141, as shells expect, without a traceback.
    """
    try:
        sys.exit(main())
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
