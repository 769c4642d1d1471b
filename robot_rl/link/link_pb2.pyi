from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Array(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Sender(_message.Message):
    __slots__ = ("schema", "run", "actor", "log", "incarnation")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    schema: int
    run: str
    actor: str
    log: int
    incarnation: int
    def __init__(self, schema: _Optional[int] = ..., run: _Optional[str] = ..., actor: _Optional[str] = ..., log: _Optional[int] = ..., incarnation: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("schema",)
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    schema: int
    def __init__(self, schema: _Optional[int] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("schema", "run", "choice")
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    schema: int
    run: str
    choice: str
    def __init__(self, schema: _Optional[int] = ..., run: _Optional[str] = ..., choice: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("sender", "layout")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    layout: str
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., layout: _Optional[str] = ...) -> None: ...

class AppendRequest(_message.Message):
    __slots__ = ("sender", "first", "count", "rows", "health")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    first: int
    count: int
    rows: bytes
    health: Health
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., first: _Optional[int] = ..., count: _Optional[int] = ..., rows: _Optional[bytes] = ..., health: _Optional[_Union[Health, _Mapping]] = ...) -> None: ...

class Health(_message.Message):
    __slots__ = ("unsent", "period_p50_s", "period_p99_s", "late", "steps", "policy_age_s", "superseded", "retries")
    UNSENT_FIELD_NUMBER: _ClassVar[int]
    PERIOD_P50_S_FIELD_NUMBER: _ClassVar[int]
    PERIOD_P99_S_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_AGE_S_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_FIELD_NUMBER: _ClassVar[int]
    RETRIES_FIELD_NUMBER: _ClassVar[int]
    unsent: int
    period_p50_s: float
    period_p99_s: float
    late: int
    steps: int
    policy_age_s: float
    superseded: int
    retries: int
    def __init__(self, unsent: _Optional[int] = ..., period_p50_s: _Optional[float] = ..., period_p99_s: _Optional[float] = ..., late: _Optional[int] = ..., steps: _Optional[int] = ..., policy_age_s: _Optional[float] = ..., superseded: _Optional[int] = ..., retries: _Optional[int] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("cursor", "stop")
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    cursor: int
    stop: bool
    def __init__(self, cursor: _Optional[int] = ..., stop: bool = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("sender",)
    SENDER_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ...) -> None: ...

class News(_message.Message):
    __slots__ = ("version", "env_steps", "policy", "granted", "stop")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENV_STEPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    version: int
    env_steps: int
    policy: _containers.RepeatedCompositeFieldContainer[Array]
    granted: int
    stop: bool
    def __init__(self, version: _Optional[int] = ..., env_steps: _Optional[int] = ..., policy: _Optional[_Iterable[_Union[Array, _Mapping]]] = ..., granted: _Optional[int] = ..., stop: bool = ...) -> None: ...
