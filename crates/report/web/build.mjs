// Builds dist/page.js and dist/page.css out of src, and the hash of the script for the page's security policy.
// `node build.mjs --check` builds into memory and fails where dist is something else.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { readFile, readdir, mkdir, writeFile } from "node:fs/promises";

const folder = new URL("./", import.meta.url).pathname;
const result = await build({
  absWorkingDir: folder,
  entryPoints: { page: "src/main.js" },
  bundle: true,
  minify: true,
  // d3-flame-graph knows its nodes by the name of their constructor.
  keepNames: true,
  format: "iife",
  target: ["chrome110", "firefox115", "safari16.4"],
  charset: "ascii",
  legalComments: "inline",
  outdir: "dist",
  write: false,
  metafile: true,
  banner: { js: "/* Built from crates/report/web/src; the licences of what it contains stand in LICENSES.txt there. */" },
});

const outputs = new Map(result.outputFiles.map((file) => [file.path.split("/").pop(), file.text]));
const script = outputs.get("page.js");
// The page embeds both as they are.
for (const [name, text] of outputs) {
  if (/<\/(script|style)|<!--/i.test(text)) throw new Error(`${name}: it would end the element that it stands in`);
}
// The browser hashes the text of the element, to its very last byte.
outputs.set("page.js.sha256", createHash("sha256").update(script).digest("base64") + "\n");


// What is built in, with the terms that its authors want to be passed on.
const packages = [...new Set(Object.keys(result.metafile.inputs).map((path) => path.match(/^node_modules\/((@[^/]+\/)?[^/]+)/)?.[1]))];
const licences = [];
for (const name of packages.filter(Boolean).sort()) {
  const at = `${folder}node_modules/${name}`;
  const file = (await readdir(at)).find((file) => /^licen[cs]e/i.test(file));
  const { version } = JSON.parse(await readFile(`${at}/package.json`, "utf8"));
  licences.push(`## ${name} ${version}\n\n${(await readFile(`${at}/${file}`, "utf8")).trim()}\n`);
}
outputs.set("LICENSES.txt", licences.join("\n"));

if (process.argv.includes("--check")) {
  for (const [name, text] of outputs) {
    const found = await readFile(`${folder}dist/${name}`, "utf8").catch(() => "");
    if (found !== text) {
      console.error(`crates/report/web/dist/${name} is not what the sources build to; next: npm ci && npm run build`);
      process.exitCode = 1;
    }
  }
} else {
  await mkdir(`${folder}dist`, { recursive: true });
  for (const [name, text] of outputs) await writeFile(`${folder}dist/${name}`, text);
}
