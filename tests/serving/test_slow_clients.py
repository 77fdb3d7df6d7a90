"""Clients that send or read slowly hold up nobody else, and cost no calls of the network once they are gone."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlsplit

import httpx
from analytic import served
from live import live

from skipstone.serving import Engine

BODY = json.dumps({"prompt": "a", "stream": True, "partial_images": 3, "seed": 1}).encode()


def connect(address: str) -> socket.socket:
    parts = urlsplit(address)
    assert parts.hostname is not None
    assert parts.port is not None
    connected = socket.create_connection((parts.hostname, parts.port), timeout=60)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    return connected


def head(address: str, length: int) -> bytes:
    return (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: {urlsplit(address).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_others_are_served_while_some_send_and_read_slowly() -> None:
    with Engine({"analytic": served()}) as engine, live(engine) as address:
        slow = [connect(address) for _ in range(30)]
        for k, one in enumerate(slow):
            if k % 3 == 0:
                one.sendall(head(address, len(BODY))[:40])  # not even a head
            elif k % 3 == 1:
                one.sendall(head(address, len(BODY)) + BODY[:5])  # half a body
            else:
                one.sendall(head(address, len(BODY)) + BODY)  # a stream that nobody reads
        url = f"{address}/v1/images/generations"
        answers = [httpx.post(url, json={"prompt": "a", "seed": k}, timeout=60) for k in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        for one in slow:
            one.close()
        until = time.monotonic() + 60
        while engine.load != (0, 0) and time.monotonic() < until:
            time.sleep(0.01)
        assert engine.load == (0, 0)
        assert httpx.post(url, json={"prompt": "a"}, timeout=60).status_code == 200


def test_a_body_that_comes_byte_by_byte_is_a_request_like_others() -> None:
    with Engine({"analytic": served()}) as engine, live(engine) as address, connect(address) as one:
        body = json.dumps({"prompt": "a", "seed": 3}).encode()
        one.sendall(head(address, len(body)))
        for k in range(len(body)):
            one.sendall(body[k : k + 1])
        assert one.recv(15) == b"HTTP/1.1 200 OK"
