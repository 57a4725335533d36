/** Where a bundle's files come from, and the check that they are the files the manifest names. */

import { BundleError, CorruptBundleError } from "./errors.js";

/**
 * @typedef {object} Source
 * @property {string} name  For messages.
 * @property {(path: string, limit: number, progress: (bytes: number) => void) => Promise<Uint8Array | null>} read
 *   The bytes of a file, `null` where there is none; it may stop after `limit` bytes, and tells how far it is.
 */

/**
 * A bundle folder by URL, or in Node by path.
 *
 * @param {string | URL} where
 * @returns {Source}
 */
export function openSource(where) {
  const text = String(where);
  const inNode = typeof process !== "undefined" && Boolean(process.versions?.node);
  if (inNode && !/^https?:/.test(text)) return folder(text);
  const page = typeof location === "undefined" ? undefined : location.href;
  return served(new URL(text.endsWith("/") ? text : `${text}/`, page));
}

/** @param {URL} base @returns {Source} */
function served(base) {
  return {
    name: base.href,
    async read(path, limit, progress) {
      /** @type {Response} */
      let response;
      try {
        response = await fetch(new URL(path, base));
      } catch (error) {
        throw new BundleError(`${new URL(path, base)} cannot be fetched: ${/** @type {Error} */ (error).message}`, { cause: error });
      }
      if (response.status === 404) return null;
      if (!response.ok || !response.body) throw new BundleError(`${response.url}: the server answers ${response.status} ${response.statusText}`);
      /** @type {Uint8Array[]} */
      const chunks = [];
      let length = 0;
      const reader = response.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        chunks.push(part.value);
        length += part.value.length;
        progress(length);
        if (length > limit) {
          await reader.cancel();
          break;
        }
      }
      const bytes = new Uint8Array(length);
      let offset = 0;
      for (const chunk of chunks) {
        bytes.set(chunk, offset);
        offset += chunk.length;
      }
      return bytes;
    },
  };
}

/** @param {string} where @returns {Source} */
function folder(where) {
  return {
    name: where,
    async read(path, limit, progress) {
      const { lstat, open } = await import("node:fs/promises");
      const { join } = await import("node:path");
      const { fileURLToPath } = await import("node:url");
      const root = where.startsWith("file:") ? fileURLToPath(where) : where;
      let file;
      try {
        // A link may lead out of the bundle, a pipe would be waited for, and a device has no end.
        for (const place of path.split("/").keys()) {
          const part = join(root, ...path.split("/").slice(0, place + 1));
          const found = await lstat(part);
          const last = place === path.split("/").length - 1;
          if (!(last ? found.isFile() : found.isDirectory())) {
            throw new CorruptBundleError(`${part} is no ${last ? "file" : "folder"}; copy the bundle again without links`);
          }
        }
        file = await open(join(root, path));
      } catch (error) {
        if (error instanceof CorruptBundleError) throw error;
        const code = /** @type {NodeJS.ErrnoException} */ (error).code;
        if (code === "ENOENT" || code === "ENOTDIR") return null;
        throw new BundleError(`cannot read ${join(root, path)}: ${/** @type {Error} */ (error).message}`, { cause: error });
      }
      try {
        const { size } = await file.stat();
        const bytes = new Uint8Array(Math.min(size, limit + 1));
        let offset = 0;
        while (offset < bytes.length) {
          const { bytesRead } = await file.read(bytes, offset, bytes.length - offset, offset);
          if (bytesRead === 0) break;
          offset += bytesRead;
          progress(offset);
        }
        return bytes.subarray(0, offset);
      } finally {
        await file.close();
      }
    },
  };
}

/** @param {Uint8Array} bytes @returns {Promise<string>} */
export async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError("a bundle's hashes can be checked on https:// and localhost pages only (WebCrypto needs a secure context)");
  }
  const digest = await crypto.subtle.digest("SHA-256", /** @type {Uint8Array<ArrayBuffer>} */ (bytes));
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * A file of the bundle, checked against its size and hash.
 *
 * @param {Source} source
 * @param {string} path
 * @param {{ sha256: string, bytes: number }} entry
 * @param {(file: string, bytes: number, total: number) => void} [progress]
 * @returns {Promise<Uint8Array>}
 * @throws {CorruptBundleError} Naming the file.
 */
export async function readChecked(source, path, entry, progress = () => {}) {
  const bytes = await source.read(path, entry.bytes, (read) => progress(path, read, entry.bytes));
  const what = `${source.name.replace(/\/$/, "")}/${path}`;
  if (bytes === null) throw new CorruptBundleError(`${what} is missing from the bundle; copy the whole folder again`);
  if (bytes.length !== entry.bytes) {
    const found = bytes.length > entry.bytes ? "more" : `${bytes.length}`;
    throw new CorruptBundleError(`${what} has ${found} bytes, the manifest says ${entry.bytes}; copy the bundle again`);
  }
  const found = await sha256(bytes);
  if (found !== entry.sha256) {
    throw new CorruptBundleError(
      `${what} was changed after the bundle was written: sha256 ${found.slice(0, 16)}…, the manifest says ${entry.sha256.slice(0, 16)}…. ` +
        "Copy the bundle again, or export it again if the change was meant.",
    );
  }
  return bytes;
}
