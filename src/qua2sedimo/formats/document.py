"""JSON files of a study as strict, versioned pydantic models; an error names the file and the field."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, ValidationError

from qua2sedimo.errors import Qua2SeDiMoError
from qua2sedimo.formats.files import read_json, write_text
from qua2sedimo.formats.sealed import sealed, unsealed

D = TypeVar("D", bound="Document")

#: A float that may be NaN, written as null: JSON has no NaN.
MaybeFloat = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value),
]

#: For plain dataclasses that are fields of a document: as strict as the document itself.
STRICT = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="constants")


class Document(BaseModel):
    """A JSON file with a format number. A subclass declares ``format: Literal[N] = N``, its fields, its ``remedy``.

    Unknown fields, fields of another type, other formats, and content that differs from the file's checksum are errors.
    A new format adds a step to :meth:`upgraded` that converts the previous one; otherwise old files are refused with
    the remedy. Files of versions without checksums are read as they are.
    """

    model_config = ConfigDict(**STRICT, frozen=True)

    #: What to do about an unreadable file: the command that writes it again.
    remedy: ClassVar[str] = ""
    #: Spaces of indentation, for people who read the file; None writes a large file on one line.
    indent: ClassVar[int | None] = 1

    format: int

    def save(self, path: Path) -> None:
        """Write the file atomically, with a checksum of its content."""
        content = sealed(json.loads(self.model_dump_json()))
        write_text(path, json.dumps(content, indent=self.indent, ensure_ascii=False))

    @classmethod
    def load(cls: type[D], path: Path) -> D:
        """Read what :meth:`save` wrote, or an earlier format that can be upgraded.

        Raises :class:`Qua2SeDiMoError` naming the file, the field and the remedy.
        """
        content = read_json(path, cls.remedy)
        wanted = cls.model_fields["format"].default
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        try:
            if isinstance(content, dict):
                content = unsealed(content, path, cls.remedy)
            if isinstance(content, dict) and found != wanted:
                content = cls.upgraded(content, path)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            raise Qua2SeDiMoError(f"{path} is damaged: {error!r}", cls.remedy) from error
        if not isinstance(content, dict) or content.get("format") != wanted:
            raise Qua2SeDiMoError(f"{path}: format {found} is not {wanted}", cls.remedy)
        try:
            return cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise Qua2SeDiMoError(f"{path} is damaged: {where}: {first['msg']}", cls.remedy) from error
        except Qua2SeDiMoError as error:
            raise Qua2SeDiMoError(f"{path} is damaged: {error.message}", cls.remedy) from error
        except (ValueError, RecursionError, OverflowError) as error:
            raise Qua2SeDiMoError(f"{path} is damaged: {error}", cls.remedy) from error

    @classmethod
    def upgraded(cls, content: dict[str, Any], path: Path) -> dict[str, Any]:
        """The content of an earlier format, converted to the current one; unchanged if that is not possible."""
        return content
