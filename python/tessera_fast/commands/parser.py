"""argparse with messages of the command that was asked for, and the nearest name that exists."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from ..untrusted.suggest import closest

OF_THE_PROGRAM = ("-v", "--verbose", "--version")


class Parser(argparse.ArgumentParser):
    """The parser of `tessera-fast` and of each command: an option is written out, or refused."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    # argparse collects what a command does not know, and reports it with the usage of the program
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        args = list(sys.argv[1:] if args is None else args)
        self._refuse_unknown(args)
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"there is no use for {' '.join(map(repr, rest))}")
        for action in self._actions:
            value = getattr(found, action.dest, None)
            if value == "" or (isinstance(value, list) and "" in value):
                message = "expected a name, got '' (an unset variable of the shell?)"
                self.error(str(argparse.ArgumentError(action, message)))
        return found, rest

    def _refuse_unknown(self, args: Sequence[str]) -> None:
        """Before what is missing is complained of, which the wrong name may have been for."""
        for text in args:
            if text == "--" or (self._subparsers is not None and not text.startswith("-")):
                return  # what follows are names of files, or a command's own
            name = text.partition("=")[0]
            known = name in self._option_string_actions  # model-repository has a --version
            if self._subparsers is None and name in OF_THE_PROGRAM and not known:
                self.error(f"option {name!r} goes before the command")
            if name.startswith("--") and name not in self._option_string_actions:
                self._unknown(name)
            if f"-{name}" in self._option_string_actions:  # -out, which would be read as -o ut
                self._unknown(name)

    def _unknown(self, name: str) -> NoReturn:
        near = closest(name, (o for o in self._option_string_actions if o.startswith("--")))
        self.error(f"there is no option {name!r}.{near or ' --help lists what there is.'}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        near = closest(value, names)
        raise argparse.ArgumentError(
            action, f"expected {', '.join(names)}, got {str(value)[:100]!r}.{near}".rstrip(".")
        )
