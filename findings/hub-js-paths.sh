#!/usr/bin/env bash
# Hugging Face's JavaScript client downloads another file than the one asked for when the name has `#`, `?` or `%`.
#
# Version: npm @huggingface/hub 2.17.5, on a bucket, against a local stand-in of the Hub.
# Guess: a path that `listFiles` reported can be given to `downloadFile` as it is.
# Behaviour: `fileDownloadInfo`, `downloadFile` and `fileExists` put the path into the URL without percent-encoding.
#   The part from `#` on is never sent, the part from `?` on becomes the query, and `%62` means `b` to the server.
#   `pathsInfo` and `deleteFile` send the path in a JSON body, so they mean the right file.
#   `fileExists` and `pathsInfo` of one client thus contradict each other, and no call reports an error.
#   A program that downloads such a file and then deletes it keeps the bytes of another one.
# Seen in a bucket of `a`, `a#b`, `a%62`, `a?b` and `ab`, each with its own name as content:
#   downloadFile: `a#b` gives "a", `a?b` gives "a", `a%62` gives "ab".
#   `a#none` and `a?none` do not exist: fileExists is true, pathsInfo is empty.
#   deleteFile(`a#b`) sends `{"type":"deleteFile","path":"a#b"}`.
# Prints each answer. Exits with 1 if any of this differs. Needs node 20 or newer, npm and a network for npm.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund @huggingface/hub@2.17.5
cat >run.mjs <<'JS'
import assert from "node:assert";
import http from "node:http";
import { deleteFile, downloadFile, fileExists, listFiles, pathsInfo } from "@huggingface/hub";

const names = ["a", "a#b", "a%62", "a?b", "ab"];
const uploadedAt = "2026-03-01T00:00:00.000Z";
const entry = (path) => ({ type: "file", path, size: path.length, xetHash: "0".repeat(64), uploadedAt });
let batch = "";
const server = http.createServer(async (request, response) => {
  let body = "";
  for await (const part of request) body += part;
  const path = request.url.split("?")[0];
  const json = (value) => response.setHeader("Content-Type", "application/json").end(JSON.stringify(value));
  if (path.endsWith("/tree")) return json(names.map(entry));
  if (path.endsWith("/paths-info")) return json(JSON.parse(body).paths.filter((p) => names.includes(p)).map(entry));
  if (path.endsWith("/batch")) {
    batch = body.trim();
    return json({ success: true, processed: 1, succeeded: 1, failed: [] });
  }
  const name = decodeURIComponent(path.replace("/buckets/alice/b/resolve/", ""));
  if (!names.includes(name)) {
    response.writeHead(404, { "X-Error-Code": "EntryNotFound" });
    return response.end();
  }
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
  const [from, to] = range ? [Number(range[1]), Math.min(Number(range[2]), name.length - 1)] : [0, name.length - 1];
  const headers = { ETag: `"${names.indexOf(name)}"`, "Content-Type": "text/plain" };
  if (range) headers["Content-Range"] = `bytes ${from}-${to}/${name.length}`;
  response.writeHead(range ? 206 : 200, headers);
  response.end(request.method === "HEAD" ? undefined : name.slice(from, to + 1));
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const hubUrl = `http://127.0.0.1:${server.address().port}`;
const common = { repo: { type: "bucket", name: "alice/b" }, hubUrl, accessToken: "hf_example" };

const seen = {};
for await (const file of listFiles(common)) {
  seen[`downloadFile ${file.path}`] = await (await downloadFile({ ...common, path: file.path })).text();
}
for (const path of ["a#none", "a?none", "none"]) {
  seen[`fileExists ${path}`] = await fileExists({ ...common, path });
  seen[`pathsInfo ${path}`] = (await pathsInfo({ ...common, paths: [path] })).length;
}
await deleteFile({ ...common, path: "a#b" });
seen["deleteFile a#b"] = batch;
server.closeAllConnections();
server.close();
for (const [call, answer] of Object.entries(seen)) console.log(`${call}: ${answer}`);
const described = {
  "downloadFile a": "a",
  "downloadFile a#b": "a",
  "downloadFile a%62": "ab",
  "downloadFile a?b": "a",
  "downloadFile ab": "ab",
  "fileExists a#none": true,
  "pathsInfo a#none": 0,
  "fileExists a?none": true,
  "pathsInfo a?none": 0,
  "fileExists none": false,
  "pathsInfo none": 0,
  "deleteFile a#b": '{"type":"deleteFile","path":"a#b"}',
};
try {
  assert.deepStrictEqual(seen, described);
  console.log("as described");
} catch {
  console.log("CHANGED");
  process.exitCode = 1;
}
JS
node run.mjs
