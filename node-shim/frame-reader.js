'use strict';
// Cuts the byte stream from the service into frames, however the chunks fall.

const { allocate, copyBytes, pinLength, utf8Slice } = require('./primordials.js');

const PREFIX = 'Content-Length: ';
const AFTER_DIGITS = '\r\n\r\n';
const BODY_BYTES_MAX = 64 * 1024 * 1024;

/**
 * @param {(body: string) => void} onFrame
 * @param {() => void} onMalformed called once; must not return
 * @returns {(chunk: Buffer, size: number) => void} takes the next `size` bytes; `chunk` may be reused afterwards
 */
function createFrameReader(onFrame, onMalformed) {
  let headerAt = 0; // Bytes of the header matched so far, digits not counted.
  let digits = 0;
  let length = 0;
  /** @type {Buffer | null} */
  let body = null; // Set only while a body spans chunks.
  let filled = 0;

  /** Takes one header byte; true when the header is complete. @param {number} byte */
  function header(byte) {
    if (headerAt < PREFIX.length) {
      if (byte !== PREFIX_BYTES[headerAt]) onMalformed();
      headerAt += 1;
      return false;
    }
    if (headerAt === PREFIX.length && byte >= 0x30 && byte <= 0x39) {
      length = length * 10 + (byte - 0x30);
      digits += 1;
      if (length > BODY_BYTES_MAX) onMalformed();
      return false;
    }
    if (digits === 0 || byte !== AFTER_DIGITS_BYTES[headerAt - PREFIX.length]) onMalformed();
    headerAt += 1;
    return headerAt === PREFIX.length + AFTER_DIGITS.length;
  }

  /** @param {string} text */
  function finish(text) {
    headerAt = 0;
    digits = 0;
    length = 0;
    body = null;
    onFrame(text);
  }

  return (chunk, size) => {
    let at = 0;
    while (at < size) {
      if (body !== null) {
        const taken = length - filled < size - at ? length - filled : size - at;
        copyBytes(chunk, body, filled, at, at + taken);
        filled += taken;
        at += taken;
        if (filled === length) finish(utf8Slice(body, 0, length));
      } else if (header(chunk[at++])) {
        const end = at + length;
        if (end <= size) {
          const start = at;
          at = end;
          finish(utf8Slice(chunk, start, end));
        } else {
          body = pinLength(allocate(length), length);
          filled = 0;
        }
      }
    }
  };
}

const PREFIX_BYTES = Buffer.from(PREFIX);
const AFTER_DIGITS_BYTES = Buffer.from(AFTER_DIGITS);

module.exports = { createFrameReader, BODY_BYTES_MAX };
