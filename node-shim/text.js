'use strict';
// Strings on their way into a frame: well-formed, bounded, quoted.

const { IntrinsicUint8Array, byteLength, encodeInto, slice, stringify, toWellFormed } = require('./primordials.js');

const encoder = new TextEncoder();

/**
 * A JSON string literal. Lone surrogates are replaced: `"\ud800"` is legal JSON that strict parsers refuse.
 * @param {string} text
 * @returns {string}
 */
const quote = (text) => stringify(toWellFormed(text));

/**
 * At most `bytesMax` bytes of UTF-8 of `text`, with a mark that says how much is missing.
 * @param {string} text
 * @param {number} bytesMax
 * @returns {string}
 */
function clip(text, bytesMax) {
  if (text.length * 3 <= bytesMax) return text;
  const total = byteLength(text);
  if (total <= bytesMax) return text;
  const { read, written } = encodeInto(encoder, text, new IntrinsicUint8Array(bytesMax));
  return `${slice(text, 0, read)}… [${total - written} bytes more]`;
}

module.exports = { clip, quote };
