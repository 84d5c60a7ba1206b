"""From what went wrong to one line on stderr and an exit code.

====  ==================================================================================================
code  meaning
====  ==================================================================================================
0     done
1     failed: the server refused for another reason, or a check that the command makes did not hold
2     usage: a command, option, value or input line is wrong
3     not found: no such topic, partition, offset, group or member
4     refused: it exists already, the group has members, the record is too large or not acceptable; trying
      again will not help
5     unavailable: no server, a time-out, a full disk, too few replicas; the same command may work later
6     not permitted: wrong user or password, or the user may not do this
7     schema: the database has no log, an older one or too old a server: see ``logstore db``
130   interrupted by Ctrl-C; what was done is reported (143: by SIGTERM)
141   whoever read the output has gone (``| head``); silent
====  ==================================================================================================
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Final, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from logstore.cli.nearest import suggest
from logstore.cli.root import settings
from logstore.cli.streams import forget_stdout, prepare

__all__ = [
    "CheckFailed",
    "InputError",
    "Refused",
    "Terminated",
    "Unavailable",
    "exit_code",
    "guarded",
    "redact",
    "told_when_interrupted",
]

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
REFUSED: Final = 4
UNAVAILABLE: Final = 5
NOT_PERMITTED: Final = 6
SCHEMA: Final = 7
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
TERMINATED: Final = 143

BY_CLASS: Final[Mapping[str, int]] = {
    "UnknownTopicOrPartitionError": NOT_FOUND,
    "OffsetOutOfRangeError": NOT_FOUND,
    "NoOffsetForPartitionError": NOT_FOUND,
    "GroupNotFoundError": NOT_FOUND,
    "UnknownMemberError": NOT_FOUND,
    "TransactionalIdNotFoundError": NOT_FOUND,
    "InvalidTopicError": USAGE,
    "InvalidPartitionsError": USAGE,
    "InvalidReplicationFactorError": REFUSED,
    "InvalidConfigError": USAGE,
    "ConfigurationError": USAGE,
    "InvalidArgumentError": USAGE,
    "InvalidGroupError": USAGE,
    "InvalidSubscriptionError": USAGE,
    "UnsupportedCompressionTypeError": REFUSED,
    "TopicAlreadyExistsError": REFUSED,
    "TopicReadOnlyError": REFUSED,
    "MirrorError": REFUSED,
    "GroupNotEmptyError": REFUSED,
    "CommitFailedError": REFUSED,
    "ProducerFencedError": REFUSED,
    "RecordTooLargeError": REFUSED,
    "InvalidRecordError": REFUSED,
    "InvalidTimestampError": REFUSED,
    "EmbeddedServerError": UNAVAILABLE,
    "DeliveryTimeoutError": UNAVAILABLE,
    "BufferExhaustedError": UNAVAILABLE,
    "AuthenticationFailedError": NOT_PERMITTED,
    "CertificateError": NOT_PERMITTED,
    "AuthorizationFailedError": NOT_PERMITTED,
    "SchemaError": SCHEMA,
    "UnsupportedServerError": SCHEMA,
}
"""Classes of :mod:`logstore.errors` by name, so that a usage error does not have to import the clients.

A subclass counts as its nearest parent here; any other retriable error is UNAVAILABLE, the rest FAILED.
"""


class InputError(click.ClickException):
    """A line of the input is not what the options say it is."""

    exit_code = USAGE


class CheckFailed(click.ClickException):
    """The command ran, and what it checks does not hold."""

    exit_code = FAILED


class Refused(click.ClickException):
    """The command will not do this; trying again will not help."""

    exit_code = REFUSED


class Unavailable(click.ClickException):
    """What the command is for does not run; the same command may work later."""

    exit_code = UNAVAILABLE


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, so that what was done is reported."""


class Told(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, and the command has said how far it came."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def exit_code(error: BaseException) -> int:
    """The code for an error, by its class and flags."""
    if isinstance(error, click.ClickException):
        return error.exit_code
    if isinstance(error, Told):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    if isinstance(error, UnicodeError):
        return USAGE
    for cls in type(error).__mro__:
        if cls.__name__ in BY_CLASS:
            return BY_CLASS[cls.__name__]
    return UNAVAILABLE if getattr(error, "retriable", False) else FAILED


def guarded(root: click.Group, argv: Sequence[str]) -> int:
    """Runs a command line; no exception leaves it.  Returns the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    prepare()
    _show_warnings()
    debug = "--debug" in argv
    context: click.Context | None = None
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if (answer := _complete(root)) is not None:
            return answer
        color = False if os.environ.get("NO_COLOR") else None
        with root.make_context("logstore", list(argv), color=color) as context:
            settings(context)  # of all commands below: what they are told is seen here, too
            root.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        return error.exit_code
    except NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except BrokenPipeError:
        forget_stdout()
        return BROKEN_PIPE
    except click.Abort as error:
        # Of a question: click has made it of a Ctrl-C, or of the end of the input.
        told = error.__context__
        code = exit_code(told) if isinstance(told, KeyboardInterrupt) else FAILED
        return _report("not confirmed: nothing was changed", code)
    except KeyboardInterrupt as error:
        with contextlib.suppress(OSError, KeyboardInterrupt):
            sys.stdout.flush()
            if not isinstance(error, Told):
                click.echo("stopped", err=True)
        return exit_code(error)
    except Exception as error:
        if debug:
            click.echo(redact("".join(traceback.format_exception(error)), argv).rstrip(), err=True)
        suggest(error, context)
        return _report(redact(_one_line(error), argv), exit_code(error))
    return OK


@contextlib.contextmanager
def told_when_interrupted(tell: Callable[[], object]) -> Iterator[None]:
    """Calls ``tell`` when Ctrl-C or SIGTERM ends what is done inside, to say how far it came."""
    try:
        yield
    except KeyboardInterrupt as error:
        tell()
        raise Told(exit_code(error)) from error


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _show_warnings() -> None:
    """What the clients log as warnings, one line each, beside the errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger("logstore").handlers[:] = [handler]


def _report(message: str, code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError:
        forget_stdout()
    with contextlib.suppress(OSError):
        click.echo(click.style("error:", fg="red", bold=True) + " " + message, err=True)
    return code


def _one_line(error: BaseException) -> str:
    """What happened, with values and advice, on one line."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "logstore"
        return _sentences(error.format_message(), f"See `{command} --help`.")
    if isinstance(error, click.ClickException):
        return _joined(error.format_message())
    if isinstance(error, UnicodeError):
        return f"What was typed, or a file that is read, is not UTF-8: {error}."
    text = _sentences(getattr(error, "message", str(error)), getattr(error, "advice", ""))
    if getattr(type(error), "retriable", None) is None:
        # Not one of ours: a bug, or the operating system's.  Say what it is.
        name = type(error).__name__
        if isinstance(error, OSError) and error.strerror:
            where = f": {os.fsdecode(error.filename)}" if error.filename else ""
            return f"{error.strerror}{where}"
        return f"{name}: {text or 'no message'} (run again with --debug for the traceback)"
    return text


def _sentences(message: str, advice: str) -> str:
    """What happened, then what to do; the server's own messages come without a full stop."""
    message = _joined(message)
    if message and advice and message[-1] not in ".!?:":
        message += "."
    return f"{message} {_joined(advice)}".strip()


def _joined(text: str) -> str:
    return " ".join(text.split())


_URI_PASSWORD = re.compile(r"(?<=://)([^\s:/?#@]*):([^\s/?#]*)@")
_FIELD_PASSWORD = re.compile(r"(?i)\b(password|sslpassword)(\s*=\s*|%3D)('(?:[^'\\]|\\.)*'|[^\s&]+)")


def redact(text: str, argv: Sequence[str] = ()) -> str:
    """``text`` without the passwords of any DSN in it, of ``argv`` or of the environment."""
    for secret in _secrets(argv):
        # A password of one or two letters would blot out half of the words.
        if len(secret) > 2:
            text = text.replace(secret, "****")
    text = _URI_PASSWORD.sub(r"\1:****@", text)
    return _FIELD_PASSWORD.sub(r"\1\2****", text)


def _secrets(argv: Sequence[str]) -> Iterator[str]:
    yield from filter(None, (os.environ.get("PGPASSWORD"),))
    for text in (*argv, os.environ.get("LOGSTORE_DSN", "")):
        for match in _URI_PASSWORD.finditer(text):
            if match[2]:
                yield match[2]
        for match in _FIELD_PASSWORD.finditer(text):
            yield match[3].strip("'")


def _complete(root: click.Group) -> int | None:
    """Answers the shell's completion request, if this is one."""
    instruction = os.environ.get("_LOGSTORE_COMPLETE")
    if not instruction:
        return None
    from click.shell_completion import shell_complete

    return shell_complete(root, {}, "logstore", "_LOGSTORE_COMPLETE", instruction)
