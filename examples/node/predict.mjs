// A bundle in Node: each text with each adapter, as a table.
//
//   npm install edgepeft-web          (from a clone: npm install ../../targets/web)
//   edgepeft web prepare bundle
//   node predict.mjs bundle "I would buy it again"

import { openBundle } from "edgepeft-web";

const [folder, ...texts] = process.argv.slice(2);
if (folder === undefined || texts.length === 0) {
  console.error('usage: node predict.mjs BUNDLE "a text" …');
  process.exit(2);
}
const model = await openBundle(folder);
try {
  for (const adapter of model.adapters) {
    await model.use(adapter); // the file is read once; from then on this is a pointer
    for (const [row, found] of (await model.predict(texts)).entries()) {
      console.log([adapter, texts[row], found.label, found.score.toFixed(4)].join("\t"));
    }
  }
} finally {
  await model.close();
}
