/**
 * What this module throws on purpose; the names are those of edgepeft's Python exceptions.
 *
 * ```
 * EdgepeftError
 * ├── InputError            a call or a text given by the user is wrong
 * ├── AdapterError          an adapter file cannot be used
 * │   ├── AdapterMismatchError   it was made for another base or for other slots
 * │   └── UnknownAdapterError    no adapter of that name in the bundle
 * └── BundleError           a bundle cannot be opened
 *     ├── ManifestError     edgepeft.json is missing or does not fit the schema
 *     ├── CorruptBundleError     a file is missing, truncated or was edited
 *     └── NonFiniteError    a model's outputs are NaN or infinite
 * ```
 */

/** Base of everything thrown on purpose. */
export class EdgepeftError extends Error {
  /**
   * @param {string} message What was found, where, what was expected and what to do.
   * @param {ErrorOptions} [options]
   */
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** A call or a text given by the user is wrong. */
export class InputError extends EdgepeftError {}

/** An adapter file cannot be used. */
export class AdapterError extends EdgepeftError {}

/** The adapter was made for another base, or for a base with other slots. */
export class AdapterMismatchError extends AdapterError {}

/** The bundle holds no adapter of that name. */
export class UnknownAdapterError extends AdapterError {}

/** A bundle cannot be opened. */
export class BundleError extends EdgepeftError {}

/** `edgepeft.json` is missing, unreadable or does not fit the schema. */
export class ManifestError extends BundleError {}

/** A file of the bundle is missing, truncated or was edited after the bundle was written. */
export class CorruptBundleError extends BundleError {}

/** The outputs of a base or adapter are NaN or infinite, so they stand for no label and no token. */
export class NonFiniteError extends BundleError {}
