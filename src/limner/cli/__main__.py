"""The ``limner`` command: subcommands, and what becomes of errors.

Exit codes: 0 done, 2 misuse or bad input (one line on stderr), 1 our fault, 130 interrupted.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer

import limner
from limner._version import __version__
from limner.cli._messages import Messages
from limner.cli.auto import auto
from limner.cli.bench import app as bench_app
from limner.cli.convert import convert
from limner.cli.demo import demo
from limner.cli.doctor import doctor
from limner.cli.everything import everything
from limner.cli.info import info
from limner.cli.models import app as models_app
from limner.cli.propagate import propagate
from limner.cli.resume import resume
from limner.cli.segment import segment
from limner.cli.serve import serve
from limner.cli.train import app as train_app

BAD_INPUT, OUR_FAULT, INTERRUPTED = 2, 1, 130
_HELP = ["-h", "--help"]

app = typer.Typer(
    name="limner",
    help="Delineate anything in a medical image: picture, volume or video.\n\n"
    "Research use only; not a medical device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": _HELP},
)
for command in (
    *(segment, auto, propagate, everything, info, resume, convert, serve),
    *(demo, doctor),
):
    app.command()(command)
app.add_typer(models_app, name="models")
app.add_typer(train_app, name="train")
app.add_typer(bench_app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print it.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is done.")] = False,
) -> None:
    """Set up messages on stderr."""
    messages: Messages = context.obj
    if verbose:
        messages.verbose = True
        messages.setLevel(logging.INFO)
        logging.getLogger().setLevel(logging.INFO)


def main() -> None:
    """Run the command line and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show "×" shows "?"
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line on some arguments.

    Returns:
        The exit code.
    """
    messages = Messages()
    logging.getLogger().addHandler(messages)
    logging.captureWarnings(True)
    try:
        code = _command()(args=arguments, prog_name="limner", standalone_mode=False, obj=messages)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        messages.show()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, so that a closed pipe is met below and not at exit
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted; what is there is whole.", INTERRUPTED)
    except BrokenPipeError:
        return _stop_printing()
    except SystemExit as stop:  # how click leaves when it meets a closed pipe before us
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        return _stop_printing()
    except limner.LimnerError as error:
        return _fail(str(error), BAD_INPUT)
    except OSError as error:
        _trace()
        return _fail(_reason(error), BAD_INPUT)
    except MemoryError:
        return _fail("not enough memory for this image on this machine.", BAD_INPUT)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            message = error.format_message()
            if not message:  # no command was given, and the help was shown
                return BAD_INPUT
            return _fail(message + " (see limner --help)", BAD_INPUT)
        _trace()
        if isinstance(error, (ValueError, TypeError)) and _raised_by_us(error):
            return _fail(str(error), BAD_INPUT)
        return _fail(
            f"unexpected {type(error).__name__}: {error}. This is a bug of limner; "
            "set LIMNER_DEBUG=1 for the traceback and report it.",
            OUR_FAULT,
        )
    finally:
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(messages)


def _command() -> Any:
    """The command and all below it; in their help a flag has no type beside it."""
    command = typer.main.get_command(app)
    waiting: list[Any] = [command]
    while waiting:
        part = waiting.pop()
        waiting += getattr(part, "commands", {}).values()
        flags = [p for p in part.params if getattr(p, "is_flag", False)]
        helping = part.get_help_option(typer.Context(part, help_option_names=_HELP))
        for option in [*flags, *filter(None, [helping])]:
            option.metavar = option.metavar or ""
    return command


def _stop_printing() -> int:
    """The reader of our output, such as ``head``, has enough: no error, and no more output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _reason(error: OSError) -> str:
    if error.filename is not None:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}."
    return str(error)


def _raised_by_us(error: BaseException) -> bool:
    """Whether limner itself raised it: misuse that our message explains, not a bug further down."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("limner")


def _trace() -> None:
    if os.environ.get("LIMNER_DEBUG"):
        traceback.print_exc()


def _fail(message: str, code: int) -> int:
    print(f"limner: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
