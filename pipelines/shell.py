"""How a command ends: its answer on stdout, mistakes as one line on stderr, everything else in a log file.

Exit codes: 0 well, 2 a mistake of the user, 1 a mistake of ours (the line says where the traceback is), 130 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from components.errors import UserError, brief
from components.redaction import redacted

INTERRUPTED = 130


@dataclass(frozen=True)
class Answer:
    """What a command found or made: JSON values for `--json`, lines for people; another exit code where it tells of another's end."""

    values: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    code: int = 0


def answer(call: Callable[[], Any], as_json: bool, verbose: bool) -> int:
    """Runs a command, prints its answer or its failure, and returns the exit code."""
    log = _log_file()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a person's stop: leave in order
    with _logging_to(log, verbose), _only_answers_on_stdout(as_json) as say:
        try:
            result = call()
        except (UserError, typer.TyperException) as error:
            return _fail(say, as_json, 2, _message(error))
        except Exception as error:
            text = redacted(traceback.format_exc())
            with open(log, "a", encoding="utf-8") as file:
                file.write(text)
            if verbose:
                print(text, file=sys.stderr)
            return _fail(say, as_json, 1, f"{brief(error)}; details in {log}")
        if result == INTERRUPTED:  # what the parser makes of the keyboard's interrupt
            return _fail(say, as_json, INTERRUPTED, "stopped; the same command goes on where it stopped")
        if isinstance(result, Answer):
            say(json.dumps(result.values, ensure_ascii=False) if as_json else "\n".join(result.lines))
            return result.code
        return result if isinstance(result, int) else 0


def _fail(say: Callable[[str], None], as_json: bool, code: int, message: str) -> int:
    if as_json:
        say(json.dumps({"error": message, "exit": code}, ensure_ascii=False))
    print(f"raymill: {message}", file=sys.stderr)
    return code


def _message(error: Exception) -> str:
    """One line: a UserError's own, or what the parser says and where its help is."""
    if isinstance(error, UserError):
        return str(error)
    context = getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(f"{text.rstrip('.')}; see {context.command_path if context else 'raymill'} --help".split())


def _log_file() -> Path:
    folder = Path(tempfile.gettempdir()) / f"raymill-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


class _Formatter(logging.Formatter):
    """Lines without secrets, whatever a library puts into them."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


@contextmanager
def _logging_to(log: Path, verbose: bool) -> Iterator[None]:
    """What libraries log and warn goes to the file, made when there is something; with `verbose` also to stderr."""
    handlers: list[logging.Handler] = [logging.FileHandler(log, delay=True), *([logging.StreamHandler()] if verbose else [])]
    root, level = logging.getLogger(), logging.getLogger().level
    for handler in handlers:
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


@contextmanager
def _only_answers_on_stdout(as_json: bool) -> Iterator[Callable[[str], None]]:
    """With `as_json`, whatever is printed while the block runs, by child processes too, goes to stderr; `say` still reaches stdout."""
    real = sys.stdout

    def say(text: str) -> None:
        if text:
            print(text, file=real, flush=True)

    if not as_json:
        yield say
        return
    sys.stdout = sys.stderr
    kept = _point_stdout_at_stderr(real)

    def say_there(text: str) -> None:
        assert kept is not None
        with open(os.dup(kept), "w", encoding="utf-8") as file:
            file.write(f"{text}\n")

    try:
        yield say if kept is None else say_there
    finally:
        sys.stdout = real
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


def _point_stdout_at_stderr(real: Any) -> int | None:
    """Redirects file descriptor 1 and returns a copy of what it was; None when stdout is no file of the system (in a test)."""
    try:
        if real.fileno() != 1:
            return None
    except (AttributeError, OSError, ValueError):
        return None
    real.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return kept
