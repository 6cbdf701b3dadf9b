'use strict';
// One invocation, from its request to its one answer.

const { apply, awaitable, byteLength, stringify } = require('./primordials.js');
const channel = require('./channel.js');
const { createContext } = require('./context.js');
const deadline = require('./deadline.js');
const { describe, encodeFailure, failure, messageOf } = require('./failure.js');
const logs = require('./logs.js');
const scope = require('./scope.js');
const { cpuMicros, usageSince } = require('./usage.js');

/** @typedef {import('./failure.js').Failure} Failure */
/** @typedef {import('./context.js').Shared} Shared */
/**
 * A function of this version, ready to run.
 * @typedef {{
 *   info: { name: string, version: number },
 *   trigger: { type: string, blocking: boolean },
 *   handler: Function,
 *   receiver: unknown,
 *   resultBytesMax: number,
 * }} LoadedFunction
 */
/** @typedef {import('./trace.js').Trace} Trace */
/** @typedef {{ invocationId: string, attempt: number, hops: number, timeoutMs: number, trace: Trace, event: unknown }} Params */

let lastSeq = 0;

/**
 * A literal, not a class: assigning to a property asks the prototypes for a setter first.
 * @param {string} idJson
 * @param {Params} params
 * @param {LoadedFunction} fn
 * @param {number} arrivedAt
 */
function createInvocation(idJson, params, fn, arrivedAt) {
  lastSeq += 1;
  return {
    seq: lastSeq,
    idJson,
    fn,
    invocationId: params.invocationId,
    attempt: params.attempt,
    hops: params.hops,
    trace: params.trace,
    timeoutMs: params.timeoutMs,
    deadline: arrivedAt + params.timeoutMs,
    answered: false,
    cancelled: false,
    /** The outcome that `context.deny()` asked for. @type {string | null} */
    denied: null,
    /** @type {AbortController | null} */
    controller: null,
    /** @type {NodeJS.Timeout | null} */
    timer: null,
    ledger: logs.createLedger(idJson),
    cpuBefore: cpuMicros(),
  };
}
/** @typedef {ReturnType<typeof createInvocation>} Invocation */

/**
 * @param {Invocation} invocation
 * @param {Shared} shared
 * @param {unknown} event
 */
function begin(invocation, shared, event) {
  logs.refillOutside();
  scope.add(invocation);
  scope.enter(invocation, () => run(invocation, shared, event));
}

/** Never rejects. @param {Invocation} invocation @param {Shared} shared @param {unknown} event */
async function run(invocation, shared, event) {
  // Handlers start on an empty stack: not inside the socket's callback, whose resource `async_hooks` would hand out.
  await undefined;
  const { fn } = invocation;
  let value;
  try {
    value = await awaitable(apply(fn.handler, fn.receiver, [event, createContext(shared, invocation)]));
  } catch (error) {
    if (invocation.answered) return;
    return invocation.denied === null ? fail(invocation, describe(error, 'THROWN')) : refuse(invocation);
  }
  if (!invocation.answered) succeed(invocation, value);
}

/** @param {Invocation} invocation @param {unknown} value */
function succeed(invocation, value) {
  let json;
  let problem = '';
  try {
    json = value === undefined ? 'null' : stringify(value); // Runs tenant code: getters, `toJSON`.
  } catch (error) {
    problem = `cannot be sent as JSON: ${messageOf(error)}`;
  }
  if (invocation.denied !== null) return refuse(invocation);
  if (json === undefined) {
    return badResult(invocation, problem || `cannot be sent as JSON: it is a ${typeof value} or its toJSON() gave nothing`);
  }
  const size = byteLength(json);
  const { resultBytesMax } = invocation.fn;
  if (size > resultBytesMax) {
    return badResult(invocation, `takes ${size} bytes as JSON; the limit is ${resultBytesMax} bytes`);
  }
  answer(invocation, `{"value":${json}}`);
}

/** @param {Invocation} invocation @param {string} problem */
function badResult(invocation, problem) {
  const { info, trigger } = invocation.fn;
  fail(invocation, failure('BAD_RESULT', 'BadResult', `what ${info.name} returned for ${trigger.type} ${problem}`));
}

/** Answers with the recorded denial. @param {Invocation} invocation */
function refuse(invocation) {
  if (invocation.denied !== null) answer(invocation, invocation.denied);
}

/** @param {Invocation} invocation @param {Failure} why */
function fail(invocation, why) {
  answer(invocation, `{"failed":${encodeFailure(why)}}`);
}

/** The first answer counts. @param {Invocation} invocation @param {string} outcome JSON */
function answer(invocation, outcome) {
  if (invocation.answered) return;
  invocation.answered = true;
  deadline.disarm(invocation);
  scope.remove(invocation);
  channel.respond(invocation.idJson, `{"outcome":${outcome},"usage":${usageSince(invocation.cpuBefore)}}`);
}

module.exports = { begin, createInvocation, fail, refuse };
