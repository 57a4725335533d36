/**
 * Open an edgepeft bundle in ONNX Runtime Web.
 *
 * ```js
 * import { openBundle } from "edgepeft-web";
 *
 * const model = await openBundle("/bundle/", { variant: "int8" });
 * await model.use("reviews");
 * const [found] = await model.predict(["I would buy it again"]);
 * await model.use("register"); // another adapter, another set of labels
 * await model.use(null); // the base again, the same bits
 * ```
 *
 * @module
 */

export { findGpu } from "./backend.js";
export * from "./errors.js";
export { openBundle } from "./open.js";
export { Runtime } from "./runtime.js";
