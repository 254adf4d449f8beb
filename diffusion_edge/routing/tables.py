"""Measured tables: JSON files beside a family's card, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from diffusion_edge.errors import ConfigError


class Record(BaseModel):
    """Frozen; unknown fields, values of other types and what is not finite are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Table(Record):
    """A record that is a whole file. COMMAND: what writes it, if a command does."""

    COMMAND: ClassVar[str | None] = None

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ConfigError, naming the file and the key, for what is not such a table."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            told = f"; `{cls.COMMAND}` writes it" if cls.COMMAND else ""
            raise ConfigError(f"{path}: there is no such file{told}", file=str(path)) from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", file=str(path)) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            where = f"{path}, {key}" if key else str(path)
            raise ConfigError(f"{where}: {first['msg']}", file=str(path), key=key) from error
