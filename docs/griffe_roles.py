"""An extension that adapts griffe to our sources.

Docstrings refer to other objects as :class:`~package.Name`; the site shows the last part of the name as code. Classes
of the extension module are created by `__new__`, whose signature is shown as that of the class.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|attr|data|mod|exc):`~?(?:[\w.]*\.)?(\w+)`")


class Roles(griffe.Extension):
    """Replaces roles in docstrings, and gives classes the signature of `__new__`."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for each object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Called by griffe for each class, once it has read all members."""
        if "__new__" in cls.members and "__init__" not in cls.members:
            cls.set_member("__init__", cls.members["__new__"])
