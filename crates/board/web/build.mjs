// Builds dist/main.js and dist/main.css out of src and of the report's page, whose packages and components it uses.
// `node build.mjs --check` builds into memory and fails where dist is something else.
import { createHash } from "node:crypto";
import { createRequire } from "node:module";
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";

const folder = new URL("./", import.meta.url).pathname;
const report = new URL("../../report/web/", import.meta.url).pathname;
const { build } = createRequire(`${report}package.json`)("esbuild");

const result = await build({
  absWorkingDir: folder,
  entryPoints: { main: "src/main.js" },
  nodePaths: [`${report}node_modules`],
  bundle: true,
  minify: true,
  format: "iife",
  target: ["chrome110", "firefox115", "safari16.4"],
  charset: "ascii",
  legalComments: "inline",
  outdir: "dist",
  write: false,
  metafile: true,
  banner: { js: "/* Built from crates/board/web/src; the licences of what it contains stand in LICENSES.txt there. */" },
});

const outputs = new Map(result.outputFiles.map((file) => [file.path.split("/").pop(), file.text]));
// What is built in, with the terms that its authors want to be passed on.
const packages = [...new Set(Object.keys(result.metafile.inputs).map((path) => path.match(/node_modules\/((@[^/]+\/)?[^/]+)/)?.[1]))];
const licences = [];
for (const name of packages.filter(Boolean).sort()) {
  const at = `${report}node_modules/${name}`;
  const file = (await readdir(at)).find((file) => /^licen[cs]e/i.test(file));
  const { version } = JSON.parse(await readFile(`${at}/package.json`, "utf8"));
  licences.push(`## ${name} ${version}\n\n${(await readFile(`${at}/${file}`, "utf8")).trim()}\n`);
}
outputs.set("LICENSES.txt", licences.join("\n"));

if (process.argv.includes("--check")) {
  const digest = (text) => createHash("sha256").update(text).digest("hex");
  for (const [name, text] of outputs) {
    const found = await readFile(`${folder}dist/${name}`, "utf8").catch(() => "");
    if (digest(found) !== digest(text)) {
      console.error(`crates/board/web/dist/${name} is not what the sources build to; next: node crates/board/web/build.mjs`);
      process.exitCode = 1;
    }
  }
} else {
  await mkdir(`${folder}dist`, { recursive: true });
  for (const [name, text] of outputs) await writeFile(`${folder}dist/${name}`, text);
}
