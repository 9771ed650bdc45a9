"""The one exception for bad input, and how a program ends on it: one line on stderr, exit code 2."""

import functools
import os
import signal
import sys


class InputError(Exception):
    """Bad usage or bad input of the user's. The message says what is wrong, where, and what to do, in one line."""


class UnfinishedError(InputError):
    """The machine stopped a run, not its input: a full disk, a killed worker. What is done stays for the next run."""


def one_line(error: BaseException) -> str:
    """An exception's type and text, without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


def shown(text: str) -> str:
    """A piece of a file as messages quote it, cut after some 60 letters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def ends_on_input_error(main):
    """Decorate a program's `main`: an `InputError` becomes one line and exit code 2, Ctrl-C one line and 130."""

    @functools.wraps(main)
    def guarded(*args, **kwargs):
        try:
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt as interrupt:
            print(f"interrupted{interrupt}", file=sys.stderr)
            raise SystemExit(130) from None
        except BrokenPipeError:  # the reader of our output has gone, as `| head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(128 + signal.SIGPIPE) from None

    return guarded
