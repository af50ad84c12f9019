"""The command line ``python -m runtime.serve``.

Exit status: 0 ended by SIGTERM or Ctrl-C, 2 usage refused, 3 bundle or engine, 4 out of memory, 130 interrupted before
it was ready, 1 a defect of this software.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path

from runtime.console import interrupted_by_sigterm, say, status_after
from runtime.dicom import KINDS, check_installed
from runtime.errors import InputError
from runtime.infer_options import server_of
from runtime.serve.app import create_app
from runtime.serve.logs import log_to_stderr
from runtime.serve.models import Info
from runtime.serve.options import TOKEN_VARIABLE, ServeOptions, build_parser, options_of
from runtime.serve.server import Server, bind, check_tls, url_of
from runtime.serve.service import open_service
from runtime.serve.token import given_token, new_token
from runtime.serve.work_folder import work_folder

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; argparse itself exits with 2 on wrong usage."""
    try:
        arguments = build_parser().parse_args(argv)
        options = options_of(arguments)
        with log_to_stderr(quiet=arguments.quiet), interrupted_by_sigterm():
            return _run(arguments, options)
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  users get a message, never a trace
        return status_after(
            error,
            interrupted="interrupted",
            out_of_memory="out of memory while the networks were loaded; close other programs or allow more memory",
        )


def _run(arguments: argparse.Namespace, options: ServeOptions) -> int:
    from runtime.pipeline import Pipeline
    from runtime.warm_up import warm_up

    listen = options.listen
    if listen.certificate is not None and listen.key is not None:
        check_tls(listen.certificate, listen.key)
    triton = server_of(arguments)
    check_installed(KINDS)
    with ExitStack() as stack:
        token = given_token(options.token_file, os.environ)
        _check_token_is_chosen(options, token)
        bound = stack.enter_context(bind(listen))
        folder = stack.enter_context(work_folder(options.work_dir))
        token_file: Path | None = options.token_file
        if token is None:
            token, token_file = new_token(folder)
        pipeline = stack.enter_context(
            Pipeline.open(
                arguments.bundle,
                engine=arguments.engine,
                precision=arguments.precision,
                device=arguments.device,
                server=triton,
                exhaustive=arguments.exhaustive,
            )
        )
        warm_up(pipeline)
        service = stack.enter_context(open_service(pipeline, options, folder))
        ready = _announcement(url_of(listen, bound), token_file, service.info, as_json=arguments.json)
        Server(create_app(service, listen, token), listen, on_ready=ready, on_end=service.jobs.close).run([bound])
        logger.info("ended")
    return 0


def _check_token_is_chosen(options: ServeOptions, token: str | None) -> None:
    """Raise InputError where others reach the server and nobody has chosen its token."""
    if token is None and not ip_address(options.listen.address).is_loopback:
        raise InputError(
            f"--bind {options.listen.address} needs a token of your own: --token-file FILE or ${TOKEN_VARIABLE}."
        )


def _announcement(url: str, token_file: Path | None, info: Info, *, as_json: bool) -> Callable[[], None]:
    """Says on stdout that the server is ready, and where."""
    engine = f"{info.engine.name} {info.engine.version}, {info.engine.precision}, {info.engine.device}"
    where = None if token_file is None else str(token_file)

    def announce() -> None:
        if as_json:
            say(json.dumps({"url": url, "token_file": where, "engine": engine}))
        else:
            say(f"ready at {url}; token in {where or 'the environment'}; {engine}")

    return announce
