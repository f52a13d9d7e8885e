"""Join this terminal with a line that has a shell at its other end."""

import os
import selectors
import socket
import sys
import termios
import tty


def connect(line: socket.socket) -> None:
    """Carry bytes both ways until the other end closes; then give the terminal back."""
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        _carry(line)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _carry(line: socket.socket) -> None:
    line.setblocking(True)
    with selectors.DefaultSelector() as selector:
        selector.register(line, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is line:
                    try:
                        received = line.recv(4096)
                    except ConnectionResetError:
                        return
                    if not received:
                        return
                    os.write(sys.stdout.fileno(), received)
                else:
                    line.sendall(os.read(sys.stdin.fileno(), 4096))
