#!/usr/bin/env python3
"""Writes fuzz/seeds/<target>/ from tests/vectors, and from the samples below where no vector exists.

    fuzz/seeds.py           writes what is missing, removes what is no longer made
    fuzz/seeds.py --check   changes nothing; fails when a file would change

Seeds whose name begins with `found-` came from a fuzzer, not from here: they are left alone.
`src/seeds.rs` replays every seed in the plain tests; `scripts/fuzz` starts from them.
"""

import json
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
VECTORS = HERE.parent / "tests" / "vectors"

# No more from one vector file for one target: it is variety that helps, not mass.
PER_SOURCE = 16
# Bytes. Larger inputs are cut: what lies behind is more of the same.
LONGEST = 2048


def vectors(name):
    return json.loads((VECTORS / name).read_text())


def spread(items):
    """At most PER_SOURCE of the items, evenly taken, first and last among them."""
    items = list(dict.fromkeys(items))
    if len(items) <= PER_SOURCE:
        return items
    step = (len(items) - 1) / (PER_SOURCE - 1)
    return [items[round(i * step)] for i in range(PER_SOURCE)]


def key_file():
    raw = bytes(range(32))
    digits = raw.hex().encode()
    return [raw, digits, digits + b"\n", digits.upper(), b" \t\r\n".join([digits[:7], digits[7:]]), digits[:32],
            raw + b"\n", b"\xef\xbb\xbf" + digits, digits[:63], b"a" * 32, bytes(32)]


def base91():
    v = vectors("crypto/base91.json")
    texts = [c["text"] for c in v["encode"]], [a["alias"] for a in v["aliases"]], [e["text"] for e in v["decode_edge"]]
    return [text.encode() for group in texts for text in spread(group)]


def stored_name():
    def seed(parent, stored, sidecar=b""):
        return parent.encode() + b"\0" + stored.encode() + b"\0" + sidecar

    def paths(cases):
        return [seed(bytes.fromhex(part["tweak_hex"]).decode(), part["text"], bytes.fromhex(part.get("sidecar_hex", "")))
                for case in cases for part in case.get("components", []) if "text" in part]

    def rejects(cases):
        return [seed(case["parent"], case["stored"], bytes.fromhex(case.get("sidecar_hex") or "")) for case in cases]

    plain = [seed("a/b", name) for name in ["x", "é" * 97, "é" * 98, "n" * 180, "n" * 181, "n" * 194, "n" * 255]]
    one, two = vectors("crypto/names.json"), vectors("crypto/format2_names.json")
    bad_one, bad_two = vectors("crypto/names_reject.json"), vectors("crypto/format2_names_reject.json")
    return [s for group in (paths(one["cases"]), paths(two["cases"]), rejects(bad_one["cases"]), rejects(bad_two["cases"]))
            for s in spread(group)] + plain


def container_header():
    made = []
    for name in ("crypto/content.json", "crypto/format2_content.json"):
        made += spread(struct.pack("<Q", case["container_len"]) + bytes.fromhex(case["header_hex"])
                       for case in vectors(name)["cases"])
    for name in ("container-15.bin", "format2-container.bin"):
        stored = (VECTORS / "crypto" / name).read_bytes()
        made += [struct.pack("<Q", length) + stored[:70] for length in (len(stored), len(stored) + 65568, 70, 2**64 - 1)]
    return made


def record():
    slot = (VECTORS / "crypto" / "container-15.bin").read_bytes()[70:]
    return [struct.pack("<Q", index) + slot[:length] for index in (0, 1, 2**64 - 1) for length in (0, 16, 17, 300)]


def chunks():
    return [bytes.fromhex(c["serialized_chunk_hex"]) for c in vectors("xet/compression.json")["serialized_chunks"]]


def chunk_header():
    return spread(chunk[:8] for chunk in chunks())


def compression():
    return spread(chunk for chunk in chunks() if len(chunk) <= LONGEST)


def binaries(part):
    return [path.read_bytes() for path in sorted((VECTORS / "xet").glob(f"*{part}*.bin"))]


def xorb():
    return binaries("xorb3")


def stretch():
    return [bytes([step]) + body for step in (1, 9, 255) for body in binaries("xorb3") + [b""]]


def chunk_list():
    chunks = [bytes([n]) * 32 + (n * 40 + 1).to_bytes(4, "little") for n in range(1, 9)]
    proven = [b"XETKNOW1" + b"".join(chunks[:count]) for count in (0, 1, 3, 8)] + [b"XETKNOW1" + chunks[0][:35], b"XETKNOW2"]
    # All but the checksum, which the target adds.
    head = b"XETTOLD1" + bytes(range(32)) + (2**40).to_bytes(8, "little")
    return proven + [head + b"".join(chunks[:count]) for count in (0, 1, 8)] + [head + chunks[0][:35], head[:39]]


def chunker():
    # Pieces of a byte, about the least chunk, as long as can be said, and about what hashing depends on.
    sizes = [struct.pack("<8H", *row) for row in ((0,) * 8, (8191, 0, 8190, 8192) * 2, (65535,) * 8, (1, 63, 64, 65, 8127, 8128, 9999, 3))]
    return [row + period for row in sizes for period in (b"\0", b"lapwing", bytes(range(256)) * 5)]


def dedup():
    return binaries("shard")


def upload_shards():
    return [bytes(row) for row in ((0, 0), (9, 200, 0, 1, 2, 3, 4, 5), (4, 0, 0, 1), (255, 255, *range(250)), (3, 1, 9), (30, 30, 8, 8, 8, 9, 9))]


def shard():
    return binaries("shard")


def cache_entry():
    made = [path.read_bytes() for path in sorted((VECTORS / "cache").glob("*.bin"))]
    return made + [entry[:cut] for entry in made[:1] for cut in (0, 95, 96, len(entry) - 1)]


def reconstruction():
    cases = [case for s in vectors("xet/pipeline.json")["sets"] for case in s["reconstruction"]["cases"]]
    return spread(json.dumps(case[version]).encode() for version in ("v1", "v2") for case in cases)


def byteranges():
    head = b"multipart/byteranges; boundary=b\n"
    part = b"\r\n--b\r\nContent-Range: bytes 7-9/10\r\n\r\nabc"
    return [head + part + b"\r\n--b--\r\n",
            head + part + b"\r\n--b\r\ncontent-type: text/plain\r\nContent-Range: bytes 0-1/*\r\n\r\nde\r\n--b--\r\n",
            b'multipart/byteranges; boundary="q q"\n--q q\r\nContent-Range: bytes 0-0/1\r\n\r\nx\r\n--q q--',
            head + b"\r\n--b--\r\n", head + part, b"text/plain\nx"]


def ndjson():
    lines = [b'{"type":"validating","verified":1,"total":2}', b'{"type":"committing","stage":"syncing"}',
             b'{"type":"result"}', b'{"type":"error","message":"no","retryable":true}', b"", b"{}", b"rubbish"]
    return [bytes([step]) + b"\n".join(lines[start:]) for step in (1, 7, 255) for start in range(len(lines))]


def tree():
    file = '{"type":"file","path":"a/b/c","size":7,"xetHash":"%s","mtime":"2026-01-02T03:04:05.678Z"}' % ("0" * 64)
    folder = '{"type":"directory","path":"a/b","uploadedAt":"2026-01-02T03:04:05Z"}'
    return [text.encode() for text in ("[]", f"[{file}]", f"[{folder},{file}]", f'[{file.replace("7", "-1")}]',
                                       f'[{file.replace("a/b/c", "ab/c")}]', f"[{file},{file}]", '{"error":"no"}', "[[")]


def hub_answers():
    return [json.dumps(answer).encode() for answer in (
        {"type": "user", "name": "u", "auth": {"accessToken": {"role": "write"}}},
        {"id": "u/b", "private": True, "size": 1, "totalFiles": 2, "createdAt": "2026-01-02T03:04:05Z"},
        [{"id": "u/b", "private": False}], {"url": "https://h/buckets/u/b"},
        {"success": False, "processed": 2, "succeeded": 1, "failed": [{"path": "a", "error": "no"}]},
        {"casUrl": "https://cas.example", "exp": 1900000000, "accessToken": "t"}, [{"type": "file", "path": "a", "size": 1}])]


def hub_words():
    return [b'{"error":"not found"}', b'{"error":{"message":"x"}}', b'{"errors":[{"message":"hf_x is bad"}]}', b"plain", b"\xff\x1b[2J"]


def hub_link():
    return [b'<https://hub.example/api/x?cursor=a>; rel="next"', b"<https://hub.example/n>; rel=next, </p>; rel=prev",
            b'</api/x?cursor=%2F>; rel="next"', b"<https://evil.example/n>; rel=next", b"<https://hub.example@evil/>; rel=next"]


def hub_key():
    return [b"a", b"a/b c/d%2F", b"../x", b"a//b", ".enc/t.2<`ERd~R6n'C'$`::PUSE".encode(), "é/ü".encode()]


def gateway_key():
    return [b"", b"a", b"a/b", b"a/", b"a//b", b"/a", b"a/../b", b"a/.hugbucket_keep", b"a/.hugbucket_keep/", b"x" * 256,
            b"y/" * 513, "ü/日本".encode(), b"a\0b"]


def gateway_record():
    return [b"{}", b'{"etag":"0","headers":{"content_type":"a/b","user":{"k":"v"}},"tags":{"t":""}}',
            b'{"checksum":{"algorithm":"Crc32","value":"AAAAAA=="},"parts":[{"number":1,"size":5}]}',
            b'{"key":"k","full_object":true,"algorithm":"Sha256"}',
            b'{"number":1,"size":5,"etag":"%s","uploaded":0,"hash":"%s","stored_len":5,"format":2}' % (b"0" * 32, b"0" * 64),
            b'[[key]]\naccess_key_id = "a"\nsecret_access_key = "b"\nscopes = ["c/d"]\n']


def gateway_request():
    return [b"*", b'"abc", W/"d"', b"bytes=0-9", b"bytes=9-0", b"a2V5", b"cHByZWZpeA==", b"1B2M2Y8AsgTpgAmY7PhCfg==",
            b"AAAAAA==-2", b"a=1&b=2", b"a&a"]


def gateway_ftp():
    return [b"RETR /data/a b", b"CWD ../../..", b"\xff\xf4\xff\xf2ABOR", b"PORT 127,0,0,1,4,1", b"EPRT |2|::1|5282|", b"LIST -la *.txt",
            b"MFMT 20200229235959.5 a", b"SITE UTIME a b 20200101000000 20200101000000 20200101000000 UTC", b"OPTS MLST type;size;",
            b"MDTM 20200101000000 a", b"STOR a\0b", b"USER \xc3\xbc", b"REST 18446744073709551616", b"x" * 5000]


TARGETS = [key_file, base91, stored_name, container_header, record, chunk_header, chunker, compression, xorb, stretch, chunk_list, shard,
           dedup, upload_shards, cache_entry, reconstruction, byteranges, ndjson, tree, hub_answers, hub_words, hub_link, hub_key,
           gateway_ftp, gateway_key, gateway_record, gateway_request]


def main(check):
    stale = []
    for target in TARGETS:
        folder = HERE / "seeds" / target.__name__
        wanted = {f"{i:03}": seed[:LONGEST] for i, seed in enumerate(dict.fromkeys(target()))}
        there = {p.name: p for p in folder.glob("*") if not p.name.startswith("found-")}
        for path in (there[name] for name in there.keys() - wanted.keys()):
            stale.append(path)
            check or path.unlink()
        for name, seed in wanted.items():
            path = folder / name
            if name not in there or path.read_bytes() != seed:
                stale.append(path)
                if not check:
                    folder.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(seed)
    for path in stale:
        print(("differs: " if check else "wrote or removed ") + str(path.relative_to(HERE)))
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
