"""The one exception for bad input, and how a program ends on it: one line on stderr, exit code 2."""

import functools
import sys


class InputError(Exception):
    """Bad usage or bad input of the user's. The message says what is wrong, where, and what to do, in one line."""


def ends_on_input_error(main):
    """Decorate a program's `main`: an `InputError` becomes one line and exit code 2, Ctrl-C one line and 130."""

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from None

    return guarded
