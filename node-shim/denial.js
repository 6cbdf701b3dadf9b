'use strict';
// `context.deny()`: records the refusal, then throws so that the handler stops. A refusal that was recorded is the outcome,
// even if the handler catches what was thrown and returns.

const {
  IntrinsicError, byteLength, define, stringify, toText, weakMapGet, weakMapSet,
} = require('./primordials.js');
const { encodeFailure, failure, messageOf, show } = require('./failure.js');
const { clip, quote } = require('./text.js');

/** @typedef {import('./invocation.js').Invocation} Invocation */

const REASON_BYTES_MAX = 16 * 1024;
const CODE_BYTES_MAX = 256;

class Denial extends IntrinsicError {
  /** @param {string} reason */
  constructor(reason) {
    super(reason);
    define(this, 'name', 'Denial');
  }
}

/** Tells our denials from look-alikes. @type {WeakMap<object, Invocation>} */
const owners = new WeakMap();

/**
 * @param {Invocation} invocation
 * @param {unknown} reason
 * @param {{ code?: unknown, data?: unknown } | undefined} options
 * @returns {never}
 */
function deny(invocation, reason, options) {
  if (!invocation.fn.trigger.blocking) throw new TypeError('context.deny() is only for blocking triggers');
  const text = reason === undefined ? '' : textOf(reason);
  if (invocation.denied === null && !invocation.answered) {
    // Set before looking at the options, which may throw: a refusal must not get lost.
    invocation.denied = encode(text, '', undefined);
    invocation.denied = outcome(invocation, text, options);
  }
  const denial = new Denial(text);
  weakMapSet(owners, denial, invocation);
  throw denial;
}

/** The invocation that `thrown` denies, if it is a denial. @param {any} thrown @returns {Invocation | undefined} */
const deniedBy = (thrown) => weakMapGet(owners, thrown);

/** @param {Invocation} invocation @param {string} reason @param {any} options */
function outcome(invocation, reason, options) {
  let code;
  let data;
  try {
    code = options?.code;
    const value = options?.data;
    data = stringify(value);
    if (value !== undefined && data === undefined) return badData(`is a ${typeof value}`);
  } catch (error) {
    return badData(`is not JSON-serializable: ${messageOf(error)}`);
  }
  const size = data === undefined ? 0 : byteLength(data);
  if (size > invocation.fn.resultBytesMax) {
    return badData(`takes ${size} bytes as JSON; the limit is ${invocation.fn.resultBytesMax} bytes`);
  }
  return encode(reason, code === undefined || code === null ? '' : textOf(code), data);
}

/** @param {string} reason @param {string} code @param {string | undefined} data */
function encode(reason, code, data) {
  const dataField = data === undefined ? '' : `,"data":${data}`;
  return `{"denied":{"reason":${quote(clip(reason, REASON_BYTES_MAX))},"code":${quote(clip(code, CODE_BYTES_MAX))}${dataField}}}`;
}

/** @param {string} problem */
function badData(problem) {
  return `{"failed":${encodeFailure(failure('BAD_RESULT', 'BadResult', `the data given to context.deny() ${problem}`))}}`;
}

/** @param {unknown} value */
function textOf(value) {
  try {
    return toText(value);
  } catch {
    return show(value);
  }
}

module.exports = { deniedBy, deny };
