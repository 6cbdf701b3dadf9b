'use strict';
// What runs in a worker's process: takes requests from the service (PROTOCOL.md) and runs the tenant's functions.
// Start reading at `dispatch`; one invocation is followed in invocation.js.

const { hasOwn, isArray, isInteger, keys, mapGet, monotonic, parse, reallyExit } = require('./primordials.js');
const channel = require('./channel.js');
const { captureConsole } = require('./console.js');
const deadline = require('./deadline.js');
const { EXIT_DONE } = require('./exit-codes.js');
const { failure } = require('./failure.js');
const faults = require('./faults.js');
const { initialize } = require('./initialization.js');
const { begin, createInvocation, fail } = require('./invocation.js');
const { warmUp } = require('./loader.js');
const logs = require('./logs.js');
const scope = require('./scope.js');
const { hideShim, showCpus } = require('./surroundings.js');
const { quote } = require('./text.js');
const { isTrace } = require('./trace.js');

const NOT_JSON = -32700;
const NOT_A_REQUEST = -32600;
const UNKNOWN_METHOD = -32601;
const BAD_PARAMS = -32602;

let initializeSeen = false;
/** @type {import('./initialization.js').Application | null} */
let application = null;

/** @param {string} body */
function dispatch(body) {
  let message;
  try {
    message = parse(body);
  } catch {
    return channel.respondError('null', NOT_JSON, 'not JSON');
  }
  // Own properties only: `Object.prototype` is the tenant's.
  if (!isRecord(message) || typeof own(message, 'method') !== 'string') {
    return channel.respondError('null', NOT_A_REQUEST, 'not a request');
  }
  const id = own(message, 'id');
  const params = own(message, 'params');
  if (typeof id === 'string') return request(quote(id), message.method, params);
  if (id !== undefined) return channel.respondError('null', NOT_A_REQUEST, 'the id of a request must be a string');
  if (message.method === 'cancel' && isRecord(params) && typeof own(params, 'id') === 'string') cancel(quote(params.id));
}

/**
 * @param {string} idJson
 * @param {string} method
 * @param {any} params
 */
function request(idJson, method, params) {
  if (method === 'invoke') return invoke(idJson, params);
  if (method === 'initialize') {
    if (initializeSeen) return channel.respondError(idJson, NOT_A_REQUEST, 'initialize comes once');
    const problem = initializeProblem(params);
    if (problem !== null) return channel.respondError(idJson, BAD_PARAMS, problem);
    initializeSeen = true;
    channel.notify('initializing', '{}'); // From here on what happens may be the tenant's doing.
    scope.setConcurrency(params.concurrency);
    logs.setLimits(params.limits);
    logs.refillOutside();
    return void initialize(idJson, params, (loaded) => {
      application = loaded;
    });
  }
  if (method === 'shutdown') return shutdown(idJson);
  channel.respondError(idJson, UNKNOWN_METHOD, 'unknown method');
}

/** @param {string} idJson @param {any} params */
function invoke(idJson, params) {
  const arrivedAt = monotonic();
  if (application === null) return channel.respondError(idJson, NOT_A_REQUEST, 'invoke comes after initialize');
  if (!isRecord(params) || typeof own(params, 'triggerType') !== 'string' || typeof own(params, 'invocationId') !== 'string' ||
      !isInteger(own(params, 'attempt')) || !isInteger(own(params, 'hops')) ||
      typeof own(params, 'timeoutMs') !== 'number' || !isTrace(own(params, 'trace')) || !hasOwn(params, 'event')) {
    return channel.respondError(idJson, BAD_PARAMS, 'invoke takes triggerType, invocationId, attempt, hops, timeoutMs, trace, event');
  }
  const fn = mapGet(application.functions, params.triggerType);
  if (fn === undefined) return channel.respondError(idJson, BAD_PARAMS, `no function for ${params.triggerType}`);
  if (scope.isFull()) return channel.respondError(idJson, NOT_A_REQUEST, 'as many invocations as allowed are in flight');
  begin(createInvocation(idJson, params, fn, arrivedAt), application.shared, params.event);
}

/** @param {string} idJson */
function cancel(idJson) {
  scope.forEach((invocation) => {
    if (invocation.idJson === idJson) void deadline.cancel(invocation);
  });
}

/** @param {string} idJson */
function shutdown(idJson) {
  scope.forEach((invocation) => fail(invocation, failure('COLLATERAL', 'Shutdown', 'the worker was shut down')));
  channel.respond(idJson, '{}');
  reallyExit(EXIT_DONE);
}

/** @param {any} params @returns {string | null} */
function initializeProblem(params) {
  if (!isRecord(params)) return 'params must be an object';
  const { appId, version, directory, environment, concurrency, init, functions, sdk, limits } = params;
  if (typeof appId !== 'string') return 'appId must be a string';
  if (!isInteger(version)) return 'version must be an integer';
  if (typeof directory !== 'string') return 'directory must be a string';
  if (!isRecord(environment)) return 'environment must be an object';
  for (const name of keys(environment)) if (typeof environment[name] !== 'string') return `environment.${name} must be a string`;
  if (!isInteger(concurrency) || concurrency < 1) return 'concurrency must be a positive integer';
  if (init !== null && !isSource(init)) return 'init must be null or {file, kind}';
  if (!isArray(functions)) return 'functions must be an array';
  for (let i = 0; i < functions.length; i += 1) {
    const fn = functions[i];
    if (!isSource(fn) || typeof fn.triggerType !== 'string' || typeof fn.name !== 'string' || typeof fn.blocking !== 'boolean') {
      return `functions[${i}] must be {triggerType, blocking, name, file, kind}`;
    }
  }
  if (sdk !== null && !isSdk(sdk)) return 'sdk must be null or {package, export, property, options}';
  if (!isRecord(limits) || !isInteger(limits.resultBytesMax) || !isInteger(limits.logLinesMax) ||
      !isInteger(limits.logBytesMax) || !isInteger(limits.logLineBytesMax)) {
    return 'limits must be {resultBytesMax, logLinesMax, logBytesMax, logLineBytesMax}';
  }
  return null;
}

/** @param {any} value */
const isSource = (value) =>
  isRecord(value) && typeof value.file === 'string' && (value.kind === 'cjs' || value.kind === 'cjs-async' || value.kind === 'esm');

/** @param {any} value */
const isSdk = (value) =>
  isRecord(value) && typeof value.package === 'string' && typeof value.export === 'string' &&
  typeof value.property === 'string' && isRecord(value.options);

/** @param {any} value */
const isRecord = (value) => typeof value === 'object' && value !== null && !isArray(value);

/** @param {any} object @param {string} key */
const own = (object, key) => (hasOwn(object, key) ? object[key] : undefined);

async function start() {
  captureConsole();
  faults.install();
  showCpus();
  if (process.argv[2] === 'reserve') await warmUp();
  hideShim();
  channel.listen(dispatch);
  channel.notify('ready', `{"node":${quote(process.version)}}`);
}

void start();
