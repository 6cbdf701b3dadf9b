'use strict';
// The `initialize` request: the initialization script, then every function's module. Knows what to blame when it fails.

const { awaitable, freeze, mapSet, monotonic } = require('./primordials.js');
const channel = require('./channel.js');
const { createShared } = require('./context.js');
const { describe, encodeFailure } = require('./failure.js');
const { HandlerNotFound, enter, findHandler, initializationValue, prepare } = require('./loader.js');
const { createPrototype } = require('./sdk.js');
const { addEnvironment } = require('./surroundings.js');
const { quote } = require('./text.js');

/** @typedef {import('./failure.js').Failure} Failure */
/** @typedef {import('./invocation.js').LoadedFunction} LoadedFunction */
/** @typedef {{ triggerType: string, blocking: boolean, name: string } & import('./loader.js').Source} FunctionSpec */
/**
 * @typedef {{
 *   appId: string, version: number, directory: string, environment: Record<string, string>, concurrency: number,
 *   init: import('./loader.js').Source | null, functions: FunctionSpec[], sdk: import('./sdk.js').Spec | null,
 *   limits: { resultBytesMax: number } & import('./logs.js').Limits,
 * }} Params
 */
/** @typedef {{ shared: import('./context.js').Shared, functions: Map<string, LoadedFunction> }} Application */

const INIT_FAILED = -32000;

/** Set while tenant code loads. @type {{ idJson: string, phase: 'init' | 'load', file: string } | null} */
let loading = null;

/**
 * Answers the request, whatever happens. Never rejects.
 * @param {string} idJson
 * @param {Params} params checked by the caller
 * @param {(application: Application) => void} onLoaded called just before the answer
 */
async function initialize(idJson, params, onLoaded) {
  const began = monotonic();
  const at = { idJson, phase: /** @type {'init' | 'load'} */ ('init'), file: '' };
  loading = at;
  try {
    const { directory, environment, init, functions: specs } = params;
    enter(directory);
    addEnvironment(environment);
    const loadInit = init === null ? null : prepare(init);
    const loads = specs.map(prepare); // Before any tenant code.
    /** @type {any} */
    let env = {};
    const prototype = createPrototype(params.sdk, () => env);
    /** @type {unknown} */
    let value;
    if (init !== null && loadInit !== null) {
      at.file = init.file;
      const { exports } = await awaitable(loadInit());
      ({ value } = await awaitable(initializationValue(exports)));
    }
    at.phase = 'load';
    /** @type {Map<string, LoadedFunction>} */
    const functions = new Map();
    for (let i = 0; i < specs.length; i += 1) {
      at.file = specs[i].file;
      const { exports } = await awaitable(loads[i]());
      mapSet(functions, specs[i].triggerType, loaded(params, specs[i], exports));
    }
    env = freeze({ ...process.env });
    const shared = createShared(params.appId, env, value, prototype);
    if (loading === null) return;
    loading = null;
    onLoaded({ shared, functions });
    channel.respond(idJson, `{"initMs":${monotonic() - began}}`);
  } catch (error) {
    fail(describe(error, 'INIT_FAILED'));
  }
}

/**
 * @param {Params} params
 * @param {FunctionSpec} spec
 * @param {any} exports
 * @returns {LoadedFunction}
 */
function loaded(params, spec, exports) {
  const found = findHandler(exports);
  if (found === null) throw new HandlerNotFound(spec.file, exports);
  return {
    info: freeze({ name: spec.name, version: params.version }),
    trigger: freeze({ type: spec.triggerType, blocking: spec.blocking }),
    handler: found.handler,
    receiver: found.receiver,
    resultBytesMax: params.limits.resultBytesMax,
  };
}

/**
 * Answers the request with an error if it is still open.
 * @param {Failure} failure
 * @returns {boolean} whether it was
 */
function fail(failure) {
  if (loading === null) return false;
  const { idJson, phase, file } = loading;
  loading = null;
  const data = `{"phase":"${phase}","file":${quote(file)},"failure":${encodeFailure({ ...failure, kind: 'INIT_FAILED' })}}`;
  channel.respondError(idJson, INIT_FAILED, `${file} failed to ${phase === 'init' ? 'initialize' : 'load'}`, data);
  return true;
}

module.exports = { fail, initialize };
