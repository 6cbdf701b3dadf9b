'use strict';
// Loads tenants' modules by kind and finds what to call in them. Paths count from the version's directory: see `enter`.

const { createRequire } = require('node:module');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { IntrinsicError, apply, awaitable, join, keys } = require('./primordials.js');

/** @typedef {'cjs'|'cjs-async'|'esm'} Kind */
/** @typedef {{ file: string, kind: Kind }} Source */

const LOADING = '__chatfnLoading';
let root = '';
/** Not the shim's own `require`: a tenant's `module.parent` leads to the module this one belongs to. @type {NodeJS.Require} */
let requireFromRoot;

/** What Node does when a program first imports a module of either kind takes longer than most of what else a start does. */
async function warmUp() {
  await import('./specimen.mjs');
}

/**
 * Makes this the working directory. Not done at the start: a worker in reserve learns only now whose it is.
 * @param {string} directory the version's
 */
function enter(directory) {
  process.chdir(directory);
  root = directory;
  requireFromRoot = createRequire(path.join(root, 'chatfn.js'));
}

/** What a tenant's own `require` gives in the version's directory. @param {string} name */
const requireAsTenant = (name) => requireFromRoot(name);

/**
 * Resolves the path up front: initialization scripts may `chdir`. The exports come boxed, lest an object with a `then` is
 * taken for a promise.
 * @param {Source} source
 * @returns {() => Promise<{ exports: any }>}
 */
function prepare({ file, kind }) {
  const absolute = path.resolve(root, file);
  if (kind === 'esm') {
    const { href } = pathToFileURL(absolute);
    return async () => ({ exports: await awaitable(import(href)) });
  }
  return async () => {
    let exports = requireFromRoot(absolute);
    const loading = kind === 'cjs-async' ? exports?.[LOADING] : undefined;
    if (loading !== undefined) {
      await awaitable(loading);
      delete exports[LOADING];
      exports = requireFromRoot(absolute); // The body may have replaced `module.exports` since.
    }
    return { exports };
  };
}

/**
 * @param {any} exports
 * @returns {{ handler: Function, receiver: unknown } | null}
 */
function findHandler(exports) {
  if (exports === null || exports === undefined) return null;
  const named = exports.handleEvent;
  if (typeof named === 'function') return { handler: named, receiver: exports };
  const main = exports.default;
  if (typeof main === 'function') return { handler: main, receiver: exports };
  const nested = main?.handleEvent;
  if (typeof nested === 'function') return { handler: nested, receiver: main };
  return typeof exports === 'function' ? { handler: exports, receiver: undefined } : null;
}

class HandlerNotFound extends IntrinsicError {
  /** @param {string} file @param {any} exports */
  constructor(file, exports) {
    const names = exports !== null && typeof exports === 'object' ? join(keys(exports), ', ') : '';
    super(`${file}: no handler found: declare \`function handleEvent(event, context)\` or export one ` +
      `(exports found: ${names === '' ? 'none' : names})`);
    this.name = 'HandlerNotFound';
    this.stack = '';
  }
}

/**
 * What becomes `context.initialization`, boxed as well.
 * @param {any} exports
 * @returns {Promise<{ value: unknown }>}
 */
async function initializationValue(exports) {
  let initialize;
  if (typeof exports?.default === 'function') initialize = exports.default;
  else if (typeof exports?.initialize === 'function') initialize = exports.initialize;
  else if (typeof exports === 'function') initialize = exports;
  else return { value: exports };
  const value = await awaitable(apply(initialize, exports, []));
  return { value: value === undefined ? exports : value };
}

module.exports = { HandlerNotFound, enter, findHandler, initializationValue, prepare, requireAsTenant, warmUp };
