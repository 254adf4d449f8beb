"""Every error that a person can meet.

EdgeError
├── InvalidRequest          400  the request is wrong; `param` names the field
│   ├── UnsupportedParameter     a field of the OpenAI API that this server does not implement
│   ├── UnknownModel
│   ├── InvalidPlan
│   ├── UnsupportedSolver
│   ├── BodyTooLarge        413
│   ├── BodyTimeout         408  the body did not come to its end
│   └── UnsupportedMediaType 415 the body does not say that it is JSON
├── NotFound                404  no such path
├── MethodNotAllowed        405
├── QueueFull               429  try again after `retry_after_s`
├── CannotBeInTime          429  by the forecast; it could be after `retry_after_s`
├── StageLost               503  the stage that held the request died or cannot be reached
├── NoPlan                  503  no stage that could serve the request is alive
├── NotReady                503  a configured stage has not reported
├── DeadlineExceeded        504
├── PacketError                  bytes that are not an acceptable packet; nothing was decoded
│   ├── UnknownVersion
│   ├── TruncatedPacket          fewer bytes than the head says
│   ├── OversizedPacket
│   ├── WrongChecksum
│   ├── DamagedPacket            no packet at all, or content that cannot be read
│   ├── InvalidTensor            wrong shape or dtype
│   ├── NotFinite                NaN or Inf; also in what a stage has made, before it is decoded
│   ├── WrongLatentSpace         made by a family with another latent space
│   ├── NotOffered               asks for what the stage's family does not make
│   ├── WrongPosition            outside the schedule
│   └── WrongPlan                does not start at the position, or not end with the schedule
├── ConfigError                  a config file; `file` and `key` say where
├── DoesNotFit                   memory cannot hold a stage's models
├── UnequalArm                   an arm of a benchmark did not make the same images
└── PlacementError               no node can hold a stage

Errors cross process boundaries, so each can be built from its message alone; the other fields
are keyword arguments with defaults.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property


class EdgeError(Exception):
    """Base of all errors. `status` is the HTTP status, `code` what a client can switch on."""

    status = 500
    type = "server_error"
    code = "internal_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(EdgeError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedParameter(InvalidRequest):
    code = "unsupported_parameter"


class UnknownModel(InvalidRequest):
    code = "model_not_found"


class InvalidPlan(InvalidRequest):
    code = "invalid_plan"


class UnsupportedSolver(InvalidRequest):
    code = "unsupported_solver"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "body_too_large"


class BodyTimeout(InvalidRequest):
    status = 408
    code = "body_timeout"


class UnsupportedMediaType(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class NotFound(EdgeError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class MethodNotAllowed(EdgeError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class QueueFull(EdgeError):
    status = 429
    type = "rate_limit_error"
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CannotBeInTime(EdgeError):
    """soonest: tells in how many seconds it could be, None if it could not be in time even with
    nothing else to do; asked when somebody wants to know, for that takes longer than the refusal.
    """

    status = 429
    type = "rate_limit_error"
    code = "cannot_be_in_time"

    def __init__(self, message: str, *, soonest: Callable[[], float | None]) -> None:
        super().__init__(message)
        self._soonest = soonest

    @cached_property
    def retry_after_s(self) -> float | None:
        return self._soonest()


class StageLost(EdgeError):
    status = 503
    code = "stage_lost"

    def __init__(self, message: str, *, stage: str = "") -> None:
        super().__init__(message)
        self.stage = stage


class NoPlan(EdgeError):
    status = 503
    code = "no_plan"


class NotReady(EdgeError):
    status = 503
    code = "not_ready"


class DeadlineExceeded(EdgeError):
    status = 504
    code = "deadline_exceeded"


class PacketError(EdgeError):
    code = "bad_packet"


class UnknownVersion(PacketError):
    code = "packet_version"


class TruncatedPacket(PacketError):
    code = "packet_truncated"


class OversizedPacket(PacketError):
    code = "packet_oversized"


class WrongChecksum(PacketError):
    code = "packet_checksum"


class DamagedPacket(PacketError):
    code = "packet_damaged"


class InvalidTensor(PacketError):
    code = "packet_tensor"


class NotFinite(PacketError):
    code = "packet_not_finite"


class WrongLatentSpace(PacketError):
    code = "packet_latent_space"


class NotOffered(PacketError):
    code = "packet_not_offered"


class WrongPosition(PacketError):
    code = "packet_position"


class WrongPlan(PacketError):
    code = "packet_plan"


class ConfigError(EdgeError):
    code = "config"

    def __init__(self, message: str, *, file: str = "", key: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.key = key


class PlacementError(EdgeError):
    status = 503
    code = "placement"


class DoesNotFit(EdgeError):
    status = 503
    code = "does_not_fit"


class UnequalArm(EdgeError):
    code = "unequal_arm"
