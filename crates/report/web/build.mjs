// Builds dist/page.js and dist/page.css out of src, and the hash of the script for the page's security policy.
// `node build.mjs --check` builds into memory and fails where dist is something else.
import { createHash } from "node:crypto";

import { bundle, finish } from "./bundle.mjs";

const folder = new URL("./", import.meta.url).pathname;
const outputs = await bundle(folder, "page", "Built from crates/report/web/src");
// The page embeds both as they are.
for (const [name, text] of outputs) {
  if (/\.(js|css)$/.test(name) && /<\/(script|style)|<!--/i.test(text)) throw new Error(`${name}: it would end the element that it stands in`);
}
// The browser hashes the text of the element, to its very last byte.
outputs.set("page.js.sha256", createHash("sha256").update(outputs.get("page.js")).digest("base64") + "\n");
await finish(folder, "crates/report/web", "npm ci && npm run build", outputs);
