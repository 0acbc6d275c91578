"""uvicorn's HTTP connection with a bound on everything that a client can send before its request is
read.

uvicorn bounds neither the time nor the room that the head of a request, the framing of a chunked
body, its trailers or a row of pipelined requests take, and it accepts more connections than the
process may have files. uvicorn's h11 with `h11_max_incomplete_event_size` bounds some of the room
and none of the time: heads that come in one piece, extensions of small chunks, slow clients,
answers that are not read and connections beyond the files pass it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from slmctl.server.observed import REQUEST_ID
from slmctl.server.request_errors import error_body

MAX_HEAD = 64 << 10  # bytes of a request's line and headers
MAX_FRAMING = 64 << 10  # bytes of chunk headers, chunk extensions and trailers of one body
# more of them for each byte of the body: a chunk of one byte has a header of five
FRAMING_A_BYTE = 8
MAX_PIPELINED = 16  # requests that are read while another one is answered
MAX_UNPARSED = 1 << 20  # bytes that wait behind them
UNREAD_S = 60.0  # that a client may leave an answer unread
LOOK_S = 0.5  # between two looks whether a client that has ended its side is still there
SLICE = 4096  # bytes that are parsed between two looks at the bounds


@dataclass
class Room:
    """The number of connections that there may be, and those that can be ended without harm.

    Attributes:
        most: Connections at the same time.
        receive_timeout_s: Seconds that a head has to arrive.
        on_full: Called when a connection is ended to make room for another.
    """

    most: int
    receive_timeout_s: float
    on_full: Callable[[], None] = lambda: None
    # without a request, the oldest first
    idle: dict[BoundedConnection, None] = field(default_factory=dict)

    def make(self) -> bool:
        """End the connection that has been without a request for longest;
        False where every one has a request.
        """
        self.on_full()
        oldest = next(iter(self.idle), None)
        if oldest is None:
            return False
        del self.idle[oldest]
        oldest.transport.abort()
        return True


class BoundedConnection(HttpToolsProtocol):
    """One client's connection, which costs a bounded time and room whatever the client sends.

    Over a bound the client gets 408 or 431 where no answer has begun, and the connection ends.
    """

    def __init__(self, *args: Any, room: Room, **options: Any) -> None:
        super().__init__(*args, **options)
        self.room = room
        self._heading, self._head = False, 0  # whether a head is awaited, and its bytes so far
        self._within = False  # a request that has begun and not ended
        # bytes of the request after its head: around the body, and of it
        self._framing, self._body = 0, 0
        self._unparsed = b""  # bytes after MAX_PIPELINED requests
        self._deaf = False  # nothing that comes is read any more
        self._unread: asyncio.TimerHandle | None = None  # ends a client that does not read
        # ends a head, or the rest of a body that is not read
        self._timer: asyncio.TimerHandle | None = None
        self._half_closed = False  # the client has ended its side, behind a whole request
        self._looking: asyncio.TimerHandle | None = None  # whether such a client has gone

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.room.most and not self.room.make():
            self._deaf = True
            transport.abort()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf, self._unparsed = True, b""
        self._stop_timer()
        self._stop_unread()
        self._stop_looking()
        self.room.idle.pop(self, None)
        super().connection_lost(exc)

    def eof_received(self) -> bool:
        """Answer a client that ended its side behind a whole request; True keeps the other side
        open.

        A client that hangs up looks the same until it is sent something: then its system refuses
        the connection. So it gets an interim response, which every client of HTTP/1.1 passes over.
        """
        if self._half_closed:
            return True
        if (
            self._idle
            or (self.cycle.more_body and not self.pipeline)
            or self.scope["http_version"] != "1.1"
        ):
            return False
        self._half_closed = True
        if not (self.pipeline or self.cycle.response_started):
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._look()
        return True

    def _look(self) -> None:
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._looking = self.loop.call_later(LOOK_S, self._look)

    def pause_writing(self) -> None:
        super().pause_writing()
        # the answers to a row of requests that are not read would hold a connection for ever
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_unread()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._unparsed:
            self._unparsed += data
            if len(self._unparsed) > MAX_UNPARSED:
                self._refuse(431, f"more than {MAX_UNPARSED} bytes were sent ahead of the answers")
            return
        self._parse(data)
        if (
            not self._deaf
            and self._timer is self.timeout_keep_alive_task is None
            and not self._within
            and self._idle
        ):
            self._wait_for_head()  # bytes that begin no request do not keep the connection either

    def _parse(self, data: bytes) -> None:
        """Feed the parser in slices, with a look at every bound after each."""
        done = 0
        while done < len(data) and not self._deaf:
            if len(self.pipeline) >= MAX_PIPELINED:
                self._unparsed = data[done:]
                self.flow.pause_reading()
                return
            # a slice ends where the head must end: a head that is too long is refused however it
            # was cut
            size = min(SLICE, MAX_HEAD - self._head) if self._heading else SLICE
            self._feed(data[done : done + size])
            done += size

    def _feed(self, part: bytes) -> None:
        body, was_heading = self._body, self._heading
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade:
            # no other protocol is spoken here: this request is answered, and none after it
            self._deaf = True
            self.cycle.keep_alive = False
            return
        except httptools.HttpParserError:
            self._refuse(400, "this is not HTTP/1.1")
            return
        if self._heading:
            self._head += len(part)
            if self._head >= MAX_HEAD:
                self._refuse(431, f"the head of the request is larger than {MAX_HEAD} bytes")
        elif self._within and not was_heading:
            # where this part begins a request, `body` is that of the request before
            self._framing += len(part) - max(self._body - body, 0)
            if self._framing > MAX_FRAMING + FRAMING_A_BYTE * self._body:
                self._refuse(
                    431,
                    f"chunk headers and trailers of the body have more than {MAX_FRAMING} bytes",
                )

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        self._within = True
        self._framing = 0
        self._body = 0
        if not self._heading:
            if self._idle:
                self._wait_for_head()
            else:
                self._heading, self._head = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._heading:  # trailers are read and dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self.room.idle.pop(self, None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._within = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unparsed and len(self.pipeline) < MAX_PIPELINED:
            data, self._unparsed = self._unparsed, b""
            self._parse(data)
        if self._within and self._timer is None:  # refused before its body had come
            self._timer = self.loop.call_later(self.room.receive_timeout_s, self.transport.close)
        if self._idle and self._half_closed:
            self.transport.close()
        elif self._idle and not self._within:
            self.room.idle[self] = None

    def _wait_for_head(self) -> None:
        self._stop_timer()
        self._heading, self._head = True, 0
        self.room.idle.setdefault(self)
        self._timer = self.loop.call_later(self.room.receive_timeout_s, self._late)

    def _stop_timer(self) -> None:
        self._heading = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _stop_looking(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _late(self) -> None:
        self._refuse(
            408, f"the head of the request did not arrive within {self.room.receive_timeout_s:g} s"
        )

    def _refuse(self, status: int, message: str) -> None:
        """End the connection, with a word where no answer is being sent."""
        self._stop_timer()
        self._deaf, self._unparsed = True, b""
        if self.transport.is_closing():
            return
        if not self.pipeline and (self._idle or not self.cycle.response_started):
            request_id = secrets.token_hex(12)
            body = json.dumps(
                error_body(message, "invalid_request_error", request_id=request_id)
            ).encode()
            head = (
                f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\ncontent-length: "
                f"{len(body)}\r\n"
                f"{REQUEST_ID}: {request_id}\r\n"
            )
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
