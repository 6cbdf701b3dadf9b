'use strict';
// Everything the protocol needs once tenant code has run, captured before it does: a tenant may replace any global or
// prototype method it can reach. Array iteration (spread, destructuring, for-of) reads `Array.prototype[Symbol.iterator]`
// and is therefore avoided in the shim after load; so are array and string methods called as methods.

const fs = require('node:fs');
const util = require('node:util');
const { AsyncLocalStorage } = require('node:async_hooks');

const { bind, call } = Function.prototype;
/**
 * `uncurryThis(Map.prototype.get)(map, key)`: a method as a function that looks nothing up when it is called.
 * @type {(method: Function) => (self: any, ...args: any[]) => any}
 */
const uncurryThis = bind.bind(call);

const IntrinsicPromise = Promise;
const IntrinsicAbortController = AbortController;
const { defineProperty } = Object;
const { isPromise } = util.types;

/**
 * @template {object} T
 * @param {T} target
 * @param {string} key
 * @param {unknown} value
 * @param {boolean} [enumerable]
 * @returns {T}
 */
function define(target, key, value, enumerable = false) {
  const attributes = { __proto__: null, value, configurable: true, writable: true, enumerable };
  return defineProperty(target, key, /** @type {any} */ (attributes));
}

/**
 * Assigning to it makes it an ordinary property of the object that was assigned to.
 * @param {object} target
 * @param {string} key
 * @param {() => unknown} get
 * @param {boolean} [enumerable]
 */
function defineGetter(target, key, get, enumerable = false) {
  /** @this {object} @param {unknown} value */
  function set(value) {
    define(this, key, value, true);
  }
  defineProperty(target, key, /** @type {any} */ ({ __proto__: null, get, set, configurable: true, enumerable }));
}

/**
 * Makes `await value` use the intrinsic machinery: `await` asks a promise for its `constructor` only, and falls back to the
 * (replaceable) `Promise.prototype.then` if that is not `Promise`.
 * @template T
 * @param {T} value
 * @returns {T}
 */
function awaitable(value) {
  if (isPromise(value) && /** @type {any} */ (value).constructor !== IntrinsicPromise) {
    try {
      define(/** @type {any} */ (value), 'constructor', IntrinsicPromise);
    } catch {
      // A frozen promise: awaiting it the slow way is still correct, only observable.
    }
  }
  return value;
}

/**
 * Node's own functions ask bytes for their `byteLength`: an own property keeps a tenant's accessor on the prototype away.
 * @template {Uint8Array} T
 * @param {T} bytes
 * @param {number} size
 * @returns {T}
 */
const pinLength = (bytes, size) => define(bytes, 'byteLength', size);

module.exports = {
  pinLength,
  uncurryThis,
  awaitable,
  isPromise,
  isNativeError: util.types.isNativeError,

  apply: Reflect.apply,
  construct: Reflect.construct,
  define,
  defineGetter,
  freeze: Object.freeze,
  keys: Object.keys,
  hasOwn: Object.hasOwn,
  isArray: Array.isArray,
  join: uncurryThis(Array.prototype.join),
  floor: Math.floor,
  isInteger: Number.isInteger,
  toText: String,
  IntrinsicError: Error,
  IntrinsicUint8Array: Uint8Array,

  stringify: JSON.stringify,
  parse: JSON.parse,

  indexOf: uncurryThis(String.prototype.indexOf),
  slice: uncurryThis(String.prototype.slice),
  startsWith: uncurryThis(String.prototype.startsWith),
  toWellFormed: uncurryThis(/** @type {any} */ (String.prototype).toWellFormed),

  mapGet: uncurryThis(Map.prototype.get),
  mapSet: uncurryThis(Map.prototype.set),
  mapDelete: uncurryThis(Map.prototype.delete),
  mapForEach: uncurryThis(Map.prototype.forEach),
  weakMapGet: uncurryThis(WeakMap.prototype.get),
  weakMapSet: uncurryThis(WeakMap.prototype.set),

  byteLength: Buffer.byteLength,
  allocate: Buffer.allocUnsafeSlow,
  copyBytes: uncurryThis(Buffer.prototype.copy),
  // `toString` would look the encoder up on the prototype again.
  utf8Slice: uncurryThis(/** @type {any} */ (Buffer.prototype).utf8Slice),
  encodeInto: uncurryThis(TextEncoder.prototype.encodeInto),

  writeSync: fs.writeSync,
  wait: Atomics.wait,

  now: Date.now,
  monotonic: performance.now.bind(performance),
  setTimeout,
  clearTimeout,
  newAbortController: () => new IntrinsicAbortController(),
  abort: uncurryThis(AbortController.prototype.abort),
  signalOf: uncurryThis(
    /** @type {any} */ (Object.getOwnPropertyDescriptor(AbortController.prototype, 'signal')).get,
  ),
  IntrinsicDOMException: DOMException,

  inspect: util.inspect,
  formatWithOptions: util.formatWithOptions,

  AsyncLocalStorage,
  getStore: uncurryThis(AsyncLocalStorage.prototype.getStore),
  runWithStore: uncurryThis(AsyncLocalStorage.prototype.run),

  exit: process.exit.bind(process),
  reallyExit: /** @type {any} */ (process).reallyExit.bind(process),
  cpuUsage: process.cpuUsage.bind(process),
  resourceUsage: process.resourceUsage.bind(process),
  rss: process.memoryUsage.rss.bind(process.memoryUsage),
};
