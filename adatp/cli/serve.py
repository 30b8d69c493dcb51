"""`adatp serve`: serve a model with vLLM, pruned."""

import argparse
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from adatp.cli import options

METRICS = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client


def add(commands: Any) -> None:
    """Add the command to the subparsers."""
    serve = commands.add_parser(
        "serve",
        help="Serve a model with vLLM and an OpenAI-compatible interface, pruned.",
        description="Start vLLM's own server with what pruning needs. Every other flag is one of 'vllm serve', such as "
        "--port 8000 or --tensor-parallel-size 2.",
        allow_abbrev=False,
        usage="adatp serve MODEL [--method METHOD] [--p P] [--set NAME=VALUE] [--relevance ID_OR_PATH] "
        "[--print-command] [FLAG ...]",
    )
    serve.add_argument("model", metavar="MODEL", help="Checkpoint: a Hugging Face name or a folder; comes first.")
    options.add_method(serve)
    serve.add_argument(
        "--relevance",
        default="auto",
        metavar="ID_OR_PATH",
        help="SigLIP checkpoint that compares frames with the question; 'auto' takes the one that fits the model, "
        "'none' does not compare (default: auto).",
    )
    serve.add_argument(
        "--print-command",
        action="store_true",
        help="Print the command of vLLM that starts this server, and start nothing (default: start it).",
    )
    serve.set_defaults(command=_serve, flags=[])


def _serve(arguments: argparse.Namespace) -> int:
    from adatp.vllm.arguments import engine_args, flags

    method = options.method_of(arguments)
    relevance = None if arguments.relevance.lower() == "none" else arguments.relevance
    args = engine_args(arguments.model, method, relevance=relevance)
    if arguments.print_command:
        print(shlex.join(["vllm", "serve", arguments.model, *flags(args), *arguments.flags]))
        return 0
    with _shared_metrics():
        from adatp.vllm.runtime.server import serve  # importing vLLM reads where the metrics are

        serve(arguments.model, args, arguments.flags)
    return 0


@contextmanager
def _shared_metrics() -> Iterator[None]:
    """Let the counters of the workers, which are other processes, appear in the server's metrics."""
    with tempfile.TemporaryDirectory() as directory:
        os.environ.setdefault(METRICS, directory)
        try:
            yield
        finally:
            if os.environ[METRICS] == directory:
                del os.environ[METRICS]
