// Runs one scenario of the JavaScript Hub client and prints what it saw as JSON.
//
//   node client.mjs MODULES ENDPOINT TOKEN BUCKET    MODULES: the folder that holds node_modules

import { createRequire } from "node:module";
import { createHash } from "node:crypto";

const [modules, hubUrl, accessToken, name] = process.argv.slice(2);
const hub = createRequire(`${modules}/package.json`)("@huggingface/hub");

const repo = { type: "bucket", name };
const to = { repo, hubUrl, accessToken };
const digest = (bytes) => createHash("sha256").update(bytes).digest("hex");
const bytes = async (blob) => Buffer.from(await blob.arrayBuffer());
const content = Buffer.alloc(300_000, "some content, again and again; ");

async function list(path, recursive) {
  const paths = [];
  for await (const entry of hub.listFiles({ ...to, path, recursive })) paths.push(`${entry.type} ${entry.path}`);
  return paths.sort();
}

async function read(path, range) {
  const blob = await hub.downloadFile({ ...to, path });
  return blob && bytes(range ? blob.slice(...range) : blob);
}

const seen = {};
await hub.createRepo({ ...to, visibility: "private" });
await hub.uploadFiles({
  ...to,
  files: [
    { path: "d/big", content: new Blob([content]) },
    { path: "d/empty", content: new Blob([]) },
  ],
});
seen.level = await list(undefined, false);
seen.below = await list(undefined, true);
seen.info = [];
for (const path of ["d/big", "d/empty", "d/none"]) {
  const info = await hub.fileDownloadInfo({ ...to, path });
  seen.info.push(info && { size: info.size, xet: Boolean(info.xet) });
}
seen.whole = digest(await read("d/big")) === digest(content);
seen.range = (await read("d/big", [100_000, 200_000])).equals(content.subarray(100_000, 200_000));
seen.empty = (await read("d/empty")).length;
seen.missing = await read("d/none");
await hub.copyFile({ source: { repo, path: "d/big" }, destination: { repo, path: "copy" }, hubUrl, accessToken });
seen.copied = digest(await read("copy")) === digest(content);
await hub.deleteFiles({ ...to, paths: ["d/big", "d/empty"] });
seen.left = await list(undefined, true);
await hub.deleteRepo(to);
seen.gone = await hub.listFiles(to).next().then(
  () => null,
  (error) => error.statusCode,
);
console.log(JSON.stringify(seen));
