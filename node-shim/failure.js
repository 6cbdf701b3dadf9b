'use strict';
// Turns whatever was thrown into a Failure. What it looks at is hostile: getters that throw, proxies, 100 MB messages.

const path = require('node:path');
const {
  IntrinsicError, indexOf, inspect, isNativeError, slice, startsWith, toText, toWellFormed,
} = require('./primordials.js');
const { clip, quote } = require('./text.js');

/** @typedef {'THROWN'|'CRASHED'|'BAD_RESULT'|'INIT_FAILED'|'OUT_OF_MEMORY'|'COLLATERAL'} Kind */
/** @typedef {{ kind: Kind, name: string, message: string, stack: string, code: string | null }} Failure */

const NAME_BYTES_MAX = 256;
const MESSAGE_BYTES_MAX = 16 * 1024;
const STACK_BYTES_MAX = 32 * 1024;
const CAUSES_MAX = 4;
const SHIM_FRAMES = __dirname + path.sep;
const INSPECT_OPTIONS = Object.freeze({ depth: 4, maxArrayLength: 100, maxStringLength: 10_000, breakLength: 120 });

/**
 * @param {unknown} thrown
 * @param {Kind} kind what to call it if nothing more precise is known
 * @returns {Failure}
 */
function describe(thrown, kind) {
  if (!isError(thrown)) {
    return { kind, name: 'NonError', message: clip(show(thrown), MESSAGE_BYTES_MAX), stack: '', code: null };
  }
  const name = clip(readText(thrown, 'name') ?? 'Error', NAME_BYTES_MAX);
  const message = readText(thrown, 'message') ?? '';
  return {
    kind: kind !== 'INIT_FAILED' && isOutOfMemory(name, message) ? 'OUT_OF_MEMORY' : kind,
    name,
    message: clip(message, MESSAGE_BYTES_MAX),
    stack: clip(stackWithCauses(thrown), STACK_BYTES_MAX),
    code: codeOf(thrown),
  };
}

/**
 * A failure of our own making.
 * @param {Kind} kind
 * @param {string} name
 * @param {string} message
 * @param {string} [stack]
 * @returns {Failure}
 */
function failure(kind, name, message, stack = '') {
  return { kind, name, message: clip(message, MESSAGE_BYTES_MAX), stack, code: null };
}

/** @param {Failure} f */
function encodeFailure(f) {
  const code = f.code === null ? 'null' : quote(f.code);
  return `{"kind":"${f.kind}","name":${quote(f.name)},"message":${quote(f.message)},"stack":${quote(f.stack)},"code":${code}}`;
}

/** Any value as text. @param {unknown} value */
function show(value) {
  try {
    return toWellFormed(inspect(value, INSPECT_OPTIONS));
  } catch {
    return '[value that cannot be shown]';
  }
}

/** The message of something caught, for a sentence of ours. @param {unknown} thrown */
function messageOf(thrown) {
  return isError(thrown) ? readText(thrown, 'message') ?? '' : show(thrown);
}

/** @param {unknown} value */
function isError(value) {
  try {
    return isNativeError(value) || value instanceof IntrinsicError;
  } catch {
    return false;
  }
}

/**
 * @param {any} object
 * @param {string} key
 * @returns {string | undefined}
 */
function readText(object, key) {
  try {
    const value = object[key];
    if (typeof value === 'string') return value;
    return value === undefined || value === null || key === 'stack' ? undefined : show(value);
  } catch {
    return undefined;
  }
}

/** @param {any} error */
function codeOf(error) {
  try {
    const { code } = error;
    if (typeof code === 'string' || typeof code === 'number') return clip(toText(code), NAME_BYTES_MAX);
  } catch {
    // As if it had none.
  }
  return null;
}

/** @param {string} name @param {string} message */
function isOutOfMemory(name, message) {
  if (name !== 'RangeError') return false;
  return message === 'Array buffer allocation failed' ||
    (startsWith(message, 'WebAssembly') && indexOf(message, 'could not allocate memory') >= 0);
}

/** @param {any} error */
function stackWithCauses(error) {
  let text = stackOf(error);
  for (let level = 0, at = error; level < CAUSES_MAX; level += 1) {
    try {
      at = at.cause;
    } catch {
      break;
    }
    if (at === undefined || at === null) break;
    text += `\nCaused by: ${isError(at) ? stackOf(at) : clip(show(at), MESSAGE_BYTES_MAX)}`;
    if (!isError(at)) break;
  }
  return text;
}

/** @param {any} error */
function stackOf(error) {
  const stack = readText(error, 'stack') ?? `${readText(error, 'name') ?? 'Error'}: ${readText(error, 'message') ?? ''}`;
  const frames = indexOf(stack, '\n    at ');
  if (frames < 0) return clip(stack, MESSAGE_BYTES_MAX);
  // The head repeats the message: clipped on its own, it cannot push the frames out.
  return clip(slice(stack, 0, frames), MESSAGE_BYTES_MAX) + tenantFrames(slice(stack, frames, frames + STACK_BYTES_MAX));
}

/** Drops the frames of the shim and of Node itself. @param {string} lines each starts with a line feed */
function tenantFrames(lines) {
  let kept = '';
  for (let at = 0; at < lines.length;) {
    const next = indexOf(lines, '\n', at + 1);
    const end = next < 0 ? lines.length : next;
    const line = slice(lines, at, end);
    const ours = startsWith(line, '\n    at ') && (indexOf(line, SHIM_FRAMES) >= 0 || indexOf(line, 'node:internal/') >= 0);
    if (!ours) kept += line;
    at = end;
  }
  return kept;
}

module.exports = { INSPECT_OPTIONS, describe, encodeFailure, failure, messageOf, show, tenantFrames };
