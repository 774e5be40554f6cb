"""``python -m recbole_llamarec.serve``: an HTTP service and a page over a checkpoint."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from recbole_llamarec.recommender import Recommender
from recbole_llamarec.serve.hosts import is_loopback
from recbole_llamarec.serve.limits import Limits

TOKEN = "RECBOLE_LLAMAREC_TOKEN"
INSTALL = 'pip install ".[serve]"'

_logger = logging.getLogger("uvicorn.error")


def main(arguments: Sequence[str] | None = None) -> None:
    """Load a checkpoint and serve it until SIGTERM or SIGINT."""
    options = parse_arguments(arguments)
    try:
        from recbole_llamarec.serve.server import Server
    except ImportError as error:
        raise SystemExit(f"The service cannot be imported ({error}); `{INSTALL}`.") from error
    try:
        limits = Limits(**{limit.name: getattr(options, limit.name) for limit in fields(Limits)})
        token = read_token(options.token_file)
        recommender = Recommender.from_checkpoint(options.checkpoint, options.data_path)
        server = Server(
            recommender, limits, options.host, options.port, token, options.allow_host or ()
        )
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error
    if token is None and not is_loopback(options.host):
        _logger.warning("There is no token: whoever reaches %s may use the service.", options.host)
    server.run()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_llamarec.serve",
        description=__doc__.split(": ", 1)[1] if __doc__ else None,
        epilog=f"A bearer token is read from --token-file or from {TOKEN}; without one, the "
        "service is open to whoever reaches it.",
    )
    parser.add_argument("--checkpoint", required=True, help="saved/LlamaRec-….pth")
    parser.add_argument("--data-path", type=Path, help="folder of data sets (dataset/)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (%(default)s)")
    parser.add_argument("--token-file", type=Path, help="file with the token that requests carry")
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        help="name that requests may give in the header Host, beside localhost; may be repeated. "
        "A service on this machine without a token asks for it",
    )
    for limit in fields(Limits):
        parser.add_argument(
            f"--{limit.name.replace('_', '-')}",
            type=type(limit.default),
            default=limit.default,
            help=f"{limit.metadata['help']} (%(default)s)",
        )
    return parser.parse_args(arguments)


def read_token(file: Path | None) -> str | None:
    """The token of a file or of the environment; ``None`` where neither is given.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is no text, or the token is empty.
    """
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"--token-file: {str(file)!r} does not exist.")
    try:
        given = os.environ.get(TOKEN) if file is None else file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--token-file: {str(file)!r} is no UTF-8 text: {error}.") from error
    if given is None:
        return None
    if not given.strip():
        raise ValueError(f"The token in {file or TOKEN} is empty; write one, or leave it out.")
    return given.strip()


if __name__ == "__main__":
    main()
