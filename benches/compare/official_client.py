"""The official client as a program, the counterpart of src/bin/our-client.rs.

`upload URL TOKEN KIND FILE` prints the file hash; `download URL TOKEN HASH LEN FILE`. No SHA-256 is
computed. This client doesn't verify what it downloads.
"""

import sys

import hf_xet

# Unix seconds, for ever.
NEVER = 1 << 40


def main(verb, url, token, *rest):
    server = dict(endpoint=url, token=token, token_expiry_unix_secs=NEVER)
    session = hf_xet.XetSession()
    if verb == "upload":
        _, path = rest
        with session.new_upload_commit(**server) as commit:
            upload = commit.start_upload_file(path, sha256=hf_xet.SKIP_SHA256)
        print(upload.result().xet_info.hash)
    elif verb == "download":
        file_hash, length, path = rest
        with session.new_file_download_group(**server) as group:
            group.start_download_file(hf_xet.XetFileInfo(file_hash, int(length)), path)
    else:
        sys.exit(__doc__)


main(*sys.argv[1:])
