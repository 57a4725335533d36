/** Whose words an adapter reads: the tokenizer, template and end tokens of its own, or the base's. */

import { BundleError } from "./errors.js";
import { readChecked } from "./source.js";
import { TextEncoder } from "./tokenizer.js";

/**
 * @typedef {import("./manifest.js").FileEntry} FileEntry
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./source.js").Source} Source
 * @typedef {Record<string, string>} OwnText  An adapter's own text files: paths by the names of those whose place they take.
 */

/** @type {OwnText} */
export const NO_TEXT = Object.freeze({});

/** The text files of a bundle, its adapters' own among them. */
export class Texts {
  /** @type {Map<string, Promise<TextEncoder | null>>} */ #encoders = new Map();
  #source;
  #manifest;
  #name;

  /** @param {Source} source @param {Manifest} manifest @param {string} name  The bundle, for messages. */
  constructor(source, manifest, name) {
    this.#source = source;
    this.#manifest = manifest;
    this.#name = name;
  }

  /** The text of the same bundle with another manifest; what was made of files that stay is kept. @param {Manifest} manifest */
  of(manifest) {
    const texts = new Texts(this.#source, manifest, this.#name);
    const same = (/** @type {string} */ file) => this.#manifest.files[file]?.sha256 === manifest.files[file]?.sha256;
    if (["tokenizer.json", "tokenizer_config.json"].every(same)) texts.#encoders = this.#encoders;
    return texts;
  }

  /** The same for adapters whose files are the same. @param {OwnText} own */
  key(own) {
    const files = Object.entries(own).map(([name, path]) => [name, this.#manifest.files[path]?.sha256]);
    return JSON.stringify(files.sort());
  }

  /** A file, checked; `null` where there is none. @param {string} file @param {OwnText} [own] @returns {Promise<Uint8Array | null>} */
  async bytes(file, own = NO_TEXT) {
    const path = own[file] ?? file;
    const entry = this.#manifest.files[path];
    return entry === undefined ? null : readChecked(this.#source, path, entry);
  }

  /** Its text. @param {string} file @param {OwnText} [own] */
  async read(file, own = NO_TEXT) {
    const bytes = await this.bytes(file, own);
    return bytes === null ? null : new TextDecoder().decode(bytes);
  }

  /** The tokenizer, made once for all adapters that share it; `null` where there is none. @param {OwnText} [own] */
  encoder(own = NO_TEXT) {
    const { "tokenizer.json": tokenizer, "tokenizer_config.json": config } = own;
    const key = this.key({ ...(tokenizer && { tokenizer }), ...(config && { config }) });
    let made = this.#encoders.get(key);
    if (made === undefined) {
      made = this.#make(own);
      this.#encoders.set(key, made);
      made.catch(() => this.#encoders.delete(key)); // read again where that failed
    }
    return made;
  }

  /** @param {OwnText} own */
  async #make(own) {
    const tokenizer = await this.bytes("tokenizer.json", own);
    if (tokenizer === null) return null;
    const config = await this.bytes("tokenizer_config.json", own);
    return new TextEncoder(tokenizer, config, this.#manifest.max_length, this.#name, await this.#padId());
  }

  /** The padding token of the base: a classifier over a decoder finds the end of a text by it. @returns {Promise<number | null>} */
  async #padId() {
    try {
      const { pad_token_id: id } = JSON.parse((await this.read("config.json")) ?? "{}");
      return Number.isSafeInteger(id) && id >= 0 ? id : null;
    } catch (error) {
      throw new BundleError(`${this.#name}/config.json is not JSON: ${/** @type {Error} */ (error).message}`, { cause: error });
    }
  }
}
