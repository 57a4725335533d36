/** `npm run schema`: writes src/schema.js, the manifest's schema without its prose, from docs/edgepeft.schema.json. */

import { readFile, writeFile } from "node:fs/promises";

const PROSE = new Set(["title", "description"]);

/** Leaves prose out where it is prose: below `properties` and `$defs` a name is a name. @param {any} node @param {boolean} [named] @returns {any} */
function bare(node, named = false) {
  if (Array.isArray(node)) return node.map((each) => bare(each));
  if (typeof node !== "object" || node === null) return node;
  const kept = Object.entries(node).filter(([key]) => named || !PROSE.has(key));
  return Object.fromEntries(kept.map(([key, value]) => [key, key === "default" ? value : bare(value, !named && (key === "properties" || key === "$defs"))]));
}

const schema = JSON.parse(await readFile(new URL("../../../docs/edgepeft.schema.json", import.meta.url), "utf8"));
const text = `/** The manifest's schema: docs/edgepeft.schema.json without its prose. Written by \`npm run schema\`. */
export const SCHEMA = /** @type {{ [key: string]: any }} */ (${JSON.stringify(bare(schema))});
`;
await writeFile(new URL("../src/schema.js", import.meta.url), text);
