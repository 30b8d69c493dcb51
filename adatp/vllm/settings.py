"""The method and its settings, as vLLM carries them to its processes in `additional_config`."""

from dataclasses import dataclass
from typing import Any

from adatp.checks.values import require, shown
from adatp.errors import InputError, InputTypeError
from adatp.methods import Method
from adatp.methods.settings import configure
from adatp.vllm.arguments import NAME

_KEYS = {"method", "settings", "relevance"}


def given_settings(vllm_config: Any) -> Any:
    """Return what stands in `additional_config["adatp"]`; an empty object if there is nothing."""
    return (vllm_config.additional_config or {}).get(NAME, {})


@dataclass(frozen=True)
class Settings:
    """What a server prunes by.

    Attributes:
        method: the method with its settings.
        relevance: the SigLIP that compares frames with the question: a name or path, "auto" or None.
    """

    method: Method
    relevance: str | None

    @classmethod
    def read(cls, vllm_config: Any) -> "Settings":
        """Read the settings of a server; those that are missing have their defaults.

        Args:
            vllm_config: vLLM's configuration, with `additional_config["adatp"]`.

        Raises:
            InputError: there is no such method or setting, or a value does not fit its setting.
        """
        return cls.of(given_settings(vllm_config))

    @classmethod
    def of(cls, given: Any) -> "Settings":
        """Read the settings from what stands in `additional_config["adatp"]`, see `read`."""
        where = f"additional_config[{NAME!r}]"
        require(isinstance(given, dict), where, given, "an object with method, settings and relevance", InputTypeError)
        unknown = sorted(set(given) - _KEYS)
        if unknown:
            raise InputError(f"{where} has no entry {shown(unknown[0])}; it has {', '.join(sorted(_KEYS))}")
        settings, relevance = given.get("settings", {}), given.get("relevance", "auto")
        is_object = isinstance(settings, dict)
        require(is_object, f"{where}['settings']", settings, "an object of settings by name", InputTypeError)
        is_name = relevance is None or isinstance(relevance, str)
        require(is_name, f"{where}['relevance']", relevance, "a name, a path, 'auto' or null", InputTypeError)
        method = configure(given.get("method", "adatp"), {name: str(value) for name, value in settings.items()})
        return cls(method, relevance)
