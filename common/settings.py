"""The base of every settings class, and the types of values that several of them share.

A setting is declared once, with its bounds, in the package that uses it. The config composes these classes, a stage
holds one, and the code that does the work gets it unchanged. Imports no torch and no numpy.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from common.units import parse_bytes, parse_tokens

Tokens = Annotated[int, BeforeValidator(parse_tokens)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy takes no more

Folder = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class Settings(BaseModel):
    """Frozen and validated. Unknown names are rejected, so no setting can miss the code that should read it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def pick(cls, *sections: BaseModel, **values: Any) -> Self:
        """Return settings with these values, and the others from the first section with such a field or property.

        Raises pydantic.ValidationError for a required field that nothing provides, and for an unknown name.
        """
        for name in cls.model_fields.keys() - values.keys():
            provider = next((section for section in sections if _provides(section, name)), None)
            if provider is not None:
                values[name] = getattr(provider, name)
        return cls(**values)

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with these values."""
        return type(self)(**{**dict(self), **changes})

    def key_content(self) -> dict[str, Any]:
        """Return what a key is made of: plain values by name.

        A field at its default is left out: it was added later, and older keys stay valid. A field that was renamed
        states its old name as its `serialization_alias`: keys have that one.
        """
        return self.model_dump(mode="json", exclude_defaults=True, by_alias=True)

    def field_names(self) -> set[str]:
        """Return the names of the fields."""
        return set(dict(self))


class NoSettings(Settings):
    """Of a stage that has none."""


def _provides(section: BaseModel, name: str) -> bool:
    return name in type(section).model_fields or isinstance(getattr(type(section), name, None), property)
