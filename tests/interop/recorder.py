"""A proxy that keeps every byte that passes it: what a Hub gets to see."""

import socket
import threading


class Recorder:
    """Listens on a free port, forwards to `target` (http://host:port), and collects what the clients send."""

    def __init__(self, target):
        host, port = target.removeprefix("http://").split(":")
        self.target = (host, int(port))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.sent = []
        self.lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target)
            for source, target, keep in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, target, keep), daemon=True).start()

    def _pump(self, source, target, keep):
        chunks = []
        if keep:
            with self.lock:
                self.sent.append(chunks)
        try:
            while data := source.recv(1 << 16):
                if keep:
                    chunks.append(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def streams(self):
        """What each connection carried towards the Hub, whole: a mark may lie across two packets."""
        with self.lock:
            return [b"".join(chunks) for chunks in self.sent]

    def close(self):
        self.listener.close()
