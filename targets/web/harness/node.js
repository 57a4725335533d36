/** `node harness/node.js < job.json > answer.json`: a job in Node. The last line of standard error says what failed. */

import { text } from "node:stream/consumers";

import { runJob } from "./job.js";

const rss = () => process.memoryUsage.rss() / 1e6;

try {
  const result = await runJob(JSON.parse(await text(process.stdin)), rss);
  const peak_rss_mb = (process.resourceUsage().maxRSS * 1024) / 1e6;
  process.stdout.write(JSON.stringify({ ...result, peak_rss_mb, engine: `Node ${process.versions.node}` }));
} catch (error) {
  const { name, message } = /** @type {Error} */ (error);
  process.stderr.write(`${name}: ${message.replaceAll("\n", " ")}\n`);
  process.exitCode = 2;
}
