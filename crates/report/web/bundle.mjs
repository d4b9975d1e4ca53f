// What the builds of the pages have in common: a script and a style out of src, and the licences of what is built in.
import { build } from "esbuild";
import { mkdir, readFile, readdir, writeFile } from "node:fs/promises";

const here = new URL("./", import.meta.url).pathname;

/** Bundles `src/main.js` of a folder; gives what belongs into its dist, by name. Packages are those of this folder. */
export async function bundle(folder, name, banner) {
  const result = await build({
    absWorkingDir: folder,
    entryPoints: { [name]: "src/main.js" },
    nodePaths: [`${here}node_modules`],
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
    banner: { js: `/* ${banner}; the licences of what it contains stand in LICENSES.txt there. */` },
  });
  const outputs = new Map(result.outputFiles.map((file) => [file.path.split("/").pop(), file.text]));
  // What is built in, with the terms that its authors want to be passed on.
  const packages = [...new Set(Object.keys(result.metafile.inputs).map((path) => path.match(/node_modules\/((@[^/]+\/)?[^/]+)/)?.[1]))];
  const licences = [];
  for (const name of packages.filter(Boolean).sort()) {
    const at = `${here}node_modules/${name}`;
    const file = (await readdir(at)).find((file) => /^licen[cs]e/i.test(file));
    const { version } = JSON.parse(await readFile(`${at}/package.json`, "utf8"));
    licences.push(`## ${name} ${version}\n\n${(await readFile(`${at}/${file}`, "utf8")).trim()}\n`);
  }
  outputs.set("LICENSES.txt", licences.join("\n"));
  return outputs;
}

/** Writes into dist; with `--check` compares, and fails where dist is something else. */
export async function finish(folder, shown, next, outputs) {
  if (process.argv.includes("--check")) {
    for (const [name, text] of outputs) {
      const found = await readFile(`${folder}dist/${name}`, "utf8").catch(() => "");
      if (found !== text) {
        console.error(`${shown}/dist/${name} is not what the sources build to; next: ${next}`);
        process.exitCode = 1;
      }
    }
    return;
  }
  await mkdir(`${folder}dist`, { recursive: true });
  for (const [name, text] of outputs) await writeFile(`${folder}dist/${name}`, text);
}
