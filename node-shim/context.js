'use strict';
// What a handler gets as its second argument. It leads to nothing of the shim: plain values and strict-mode closures.

const { freeze } = require('./primordials.js');
const { createLog } = require('./console.js');
const deadline = require('./deadline.js');
const { deny } = require('./denial.js');
const trace = require('./trace.js');

/** @typedef {import('./invocation.js').Invocation} Invocation */
/**
 * What every invocation of this worker shares.
 * @typedef {{ app: object, env: object, initialization: unknown, prototype: object }} Shared
 */

/**
 * @param {string} appId
 * @param {Record<string, string>} env
 * @param {unknown} initialization
 * @param {object} prototype what contexts have besides: the SDK
 * @returns {Shared}
 */
function createShared(appId, env, initialization, prototype) {
  return { app: freeze({ id: appId }), env, initialization, prototype };
}

/**
 * The object itself stays open: it lives as long as the invocation, and handlers may hang their own things on it.
 * @param {Shared} shared
 * @param {Invocation} invocation
 */
function createContext(shared, invocation) {
  const { fn } = invocation;
  /** @type {object | null} */
  let log = null;
  /** @type {object | null} */
  let place = null;
  return {
    // Not the context's own: whoever spreads or prints a context must not build an SDK by it.
    __proto__: shared.prototype,
    app: shared.app,
    function: fn.info,
    trigger: fn.trigger,
    invocation: freeze({ id: invocation.invocationId, attempt: invocation.attempt, hops: invocation.hops }),
    get trace() {
      return (place ??= trace.describe(invocation.trace));
    },
    get signal() {
      return deadline.signal(invocation);
    },
    remainingMs: () => deadline.remainingMs(invocation),
    env: shared.env,
    get log() {
      return (log ??= createLog(invocation));
    },
    initialization: shared.initialization,
    deny: (/** @type {unknown} */ reason, /** @type {any} */ options) => deny(invocation, reason, options),
  };
}

module.exports = { createContext, createShared };
