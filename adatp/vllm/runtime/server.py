"""Starts vLLM's own server, with what pruning needs."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.cli.serve import cmd_init
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.logger import configure_logging_from_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from adatp.errors import InputError
from adatp.vllm.arguments import flags


def serve(model: str, args: Mapping[str, Any], given: Sequence[str]) -> None:
    """Run `vllm serve` until it ends.

    Args:
        model: name or path of the checkpoint.
        args: the arguments that make vLLM prune, see `engine_args`.
        given: flags of `vllm serve` from the user. One that does not fit is refused when vLLM reads its configuration.

    Raises:
        InputError: vLLM cannot serve the model in this way.
    """
    cli_env_setup()
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    [command] = cmd_init()
    parser = FlexibleArgumentParser(prog="adatp")
    command.subparser_init(parser.add_subparsers(dest="subparser"))
    parsed, ours, defaults = (parser.parse_args(["serve", model, *own]) for own in (given, flags(args), ()))
    for name in args:
        own, default = getattr(parsed, name), getattr(defaults, name)
        setattr(parsed, name, _joined(own, getattr(ours, name), default))
    configure_logging_from_args(parsed)
    try:
        command.validate(parsed)
        command.cmd(parsed)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"vLLM cannot serve {model}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what an error of vLLM says, without what pydantic adds."""
    told = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
    return str(told).removeprefix("Value error, ")


def _joined(given: Any, ours: Any, default: Any) -> Any:
    """Return the value of an argument: that of the user where there is one; objects and lists have both."""
    if isinstance(ours, dict):
        return {**(given or {}), **ours}
    if isinstance(ours, list):
        return [*(given or []), *ours]
    return ours if given == default else given
