'use strict';
// Log notifications and their budget: each invocation has its own, lines outside of any share one.

const { byteLength, now, toWellFormed } = require('./primordials.js');
const channel = require('./channel.js');
const { clip, quote } = require('./text.js');

/** @typedef {'debug'|'info'|'warn'|'error'} Level */
/** @typedef {{ logLinesMax: number, logBytesMax: number, logLineBytesMax: number }} Limits */
/**
 * What has been logged on whose behalf. `indent` belongs to `console.group`.
 * @typedef {{ idJson: string, lines: number, bytes: number, silent: boolean, indent: string }} Ledger
 */

/** @type {Limits} */
let limits = { logLinesMax: 0, logBytesMax: 0, logLineBytesMax: 0 };

/** @param {string} idJson @returns {Ledger} */
const createLedger = (idJson) => ({ idJson, lines: 0, bytes: 0, silent: false, indent: '' });

/** For what belongs to no invocation in flight: initialization, and work that was left behind. */
const outside = createLedger('null');

/** @param {Limits} given */
function setLimits(given) {
  limits = given;
}

function refillOutside() {
  outside.lines = 0;
  outside.bytes = 0;
  outside.silent = false;
  outside.indent = '';
}

/**
 * @param {Ledger} ledger
 * @param {Level} level
 * @param {string} text one notification, even if it has several lines
 */
function write(ledger, level, text) {
  if (ledger.silent) return;
  const line = clip(toWellFormed(text), limits.logLineBytesMax);
  ledger.lines += 1;
  ledger.bytes += byteLength(line);
  if (ledger.lines > limits.logLinesMax) return truncate(ledger, `${limits.logLinesMax} lines`);
  if (ledger.bytes > limits.logBytesMax) return truncate(ledger, `${limits.logBytesMax} bytes`);
  send(ledger, level, line);
}

/** @param {Ledger} ledger @param {string} limit */
function truncate(ledger, limit) {
  ledger.silent = true;
  send(ledger, 'warn', `[log truncated: more than ${limit}]`);
}

/** @param {Ledger} ledger @param {Level} level @param {string} line */
function send(ledger, level, line) {
  channel.notify('log', `{"id":${ledger.idJson},"level":"${level}","text":${quote(line)},"at":${now()}}`);
}

module.exports = { createLedger, outside, refillOutside, setLimits, write };
