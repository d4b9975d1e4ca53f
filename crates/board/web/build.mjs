// Builds dist/main.js and dist/main.css out of src and of the report's page, whose packages and components it uses.
// `node build.mjs --check` builds into memory and fails where dist is something else.
import { bundle, finish } from "../../report/web/bundle.mjs";

const folder = new URL("./", import.meta.url).pathname;
const outputs = await bundle(folder, "main", "Built from crates/board/web/src");
await finish(folder, "crates/board/web", "node crates/board/web/build.mjs", outputs);
