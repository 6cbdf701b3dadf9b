'use strict';
// Where in a trace an invocation runs (W3C Trace Context), as its handler and the SDK's requests tell it.

const { define, freeze, hasOwn, slice } = require('./primordials.js');

/** As it comes. @typedef {{ traceparent: string, tracestate?: string, onward: boolean }} Trace */

/** @param {any} value @returns {value is Trace} */
const isTrace = (value) =>
  typeof value === 'object' && value !== null && hasOwn(value, 'traceparent') && typeof value.traceparent === 'string' &&
  hasOwn(value, 'onward') && (!hasOwn(value, 'tracestate') || typeof value.tracestate === 'string');

/** `context.trace`. @param {Trace} trace */
function describe(trace) {
  const { traceparent } = trace; // 00-<32 digits>-<16 digits>-<2 digits>
  return freeze(addState(trace, {
    traceId: slice(traceparent, 3, 35), spanId: slice(traceparent, 36, 52), sampled: slice(traceparent, 53) === '01', traceparent,
  }));
}

/**
 * Adds what a request carries on. Nothing of a trace that only we know: whoever hears that it is not sampled records nothing of it.
 * @param {Trace} trace
 * @param {object} headers
 */
function addHeaders(trace, headers) {
  if (!trace.onward) return headers;
  return addState(trace, define(headers, 'traceparent', trace.traceparent, true));
}

/** @template {object} T @param {Trace} trace @param {T} target @returns {T} */
const addState = (trace, target) => (hasOwn(trace, 'tracestate') ? define(target, 'tracestate', trace.tracestate, true) : target);

module.exports = { addHeaders, describe, isTrace };
