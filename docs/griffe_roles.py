"""What griffe has to be told of our sources to document them.

Docstrings name other objects as :class:`~package.Name`; on the site that is code with the last word. Classes of the
extension module are made by `__new__`, whose signature is theirs.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`~?(?:[\w.]*\.)?(\w+)`")


class Roles(griffe.Extension):
    """Replaces the roles in every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe for each class, when it has read all of it."""
        if "__new__" in cls.members and "__init__" not in cls.members:
            cls.set_member("__init__", cls.members["__new__"])
