"""Packet bytes put together by hand, with a right checksum, for what `write` would refuse."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from diffusion_edge.packet import VERSION

HEAD = 26
Json = dict[str, Any]


def seal(body: bytes, version: int = VERSION) -> bytes:
    digest = hashlib.blake2b(body, digest_size=16).digest()
    return struct.pack("<4sHI16s", b"DEPK", version, len(body), digest) + body


def body_of(header: str, tensors: bytes) -> bytes:
    """A safetensors body of this header, whatever it says, and these bytes after it."""
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + tensors


def parts_of(data: bytes) -> tuple[Json, Json, bytes]:
    """A packet's fields, its safetensors header without them, and the bytes of its tensors."""
    body = data[HEAD:]
    (length,) = struct.unpack_from("<Q", body)
    header = json.loads(body[8 : 8 + length])
    return json.loads(header.pop("__metadata__")["packet"]), header, body[8 + length :]


def joined(fields: Json | str, header: Json, tensors: bytes) -> bytes:
    """What `parts_of` took apart, put together again."""
    text = fields if isinstance(fields, str) else json.dumps(fields)
    return seal(body_of(json.dumps({"__metadata__": {"packet": text}} | header), tensors))


def with_tensors(data: bytes, tensors: Mapping[str, Tensor], **fields: Any) -> bytes:
    """The packet with other tensors and fields."""
    metadata = {"packet": json.dumps(parts_of(data)[0] | fields)}
    return seal(save({name: t.clone() for name, t in tensors.items()}, metadata=metadata))
