'use strict';
// The two private pipes to the service: reads descriptor 3, writes descriptor 4. Knows frames, not what they mean.

const net = require('node:net');
const {
  IntrinsicUint8Array, allocate, byteLength, encodeInto, monotonic, pinLength, reallyExit, wait, writeSync,
} = require('./primordials.js');
const { createFrameReader } = require('./frame-reader.js');
const { EXIT_CHANNEL, EXIT_DONE } = require('./exit-codes.js');
const { quote } = require('./text.js');

const READ_FD = 3;
const WRITE_FD = 4;
const CHUNK_BYTES = 64 * 1024;
/** How long a full, non-blocking pipe may refuse bytes before the service counts as gone. */
const STALLED_MS = 30_000;

const encoder = new TextEncoder();
const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** @param {number} size */
const allocateFrame = (size) => pinLength(new IntrinsicUint8Array(size), size);
const scratch = allocateFrame(CHUNK_BYTES);

/**
 * Writes one frame, whole, before it returns: what was said before an exit has arrived.
 * @param {string} body
 */
function send(body) {
  const size = byteLength(body);
  const frame = `Content-Length: ${size}\r\n\r\n${body}`;
  const total = size + frame.length - body.length;
  const bytes = total <= CHUNK_BYTES ? scratch : allocateFrame(total);
  encodeInto(encoder, frame, bytes);
  let sent = 0;
  let stalledSince = 0;
  while (sent < total) {
    try {
      sent += writeSync(WRITE_FD, bytes, sent, total - sent);
      stalledSince = 0;
    } catch (error) {
      // Not the descriptor's fault: a tenant that logs at the bottom of an endless recursion. Nothing was written.
      if (sent === 0 && typeof error.errno !== 'number') throw error;
      if (error.code !== 'EAGAIN') reallyExit(EXIT_CHANNEL);
      if (stalledSince === 0) stalledSince = monotonic();
      if (monotonic() - stalledSince > STALLED_MS) reallyExit(EXIT_CHANNEL);
      wait(sleeper, 0, 0, 1);
    }
  }
}

/**
 * The functions below take JSON text, not values: what is sent is put together by hand, so no `toJSON` of a tenant runs.
 * @param {string} idJson
 * @param {string} resultJson
 */
function respond(idJson, resultJson) {
  send(`{"jsonrpc":"2.0","id":${idJson},"result":${resultJson}}`);
}

/**
 * @param {string} idJson
 * @param {number} code
 * @param {string} message
 * @param {string} [dataJson]
 */
function respondError(idJson, code, message, dataJson) {
  const data = dataJson === undefined ? '' : `,"data":${dataJson}`;
  send(`{"jsonrpc":"2.0","id":${idJson},"error":{"code":${code},"message":${quote(message)}${data}}}`);
}

/**
 * @param {string} method
 * @param {string} paramsJson
 */
function notify(method, paramsJson) {
  send(`{"jsonrpc":"2.0","method":"${method}","params":${paramsJson}}`);
}

/**
 * Starts reading; ends the process when the service hangs up.
 * @param {(body: string) => void} onFrame
 */
function listen(onFrame) {
  const read = createFrameReader(onFrame, () => reallyExit(EXIT_CHANNEL));
  const hangUp = () => reallyExit(EXIT_DONE);
  const buffer = pinLength(allocate(CHUNK_BYTES), CHUNK_BYTES);
  /** @param {number} size */
  const callback = (size) => {
    read(buffer, size);
    return true;
  };
  const options = { fd: READ_FD, readable: true, writable: false, onread: { buffer, callback } };
  const socket = new net.Socket(options);
  socket.on('end', hangUp).on('close', hangUp).on('error', hangUp);
  // `process._getActiveHandles()` lists referenced handles only; the timer keeps the loop alive in the socket's place.
  socket.unref();
  setInterval(() => {}, 2 ** 31 - 1);
}

module.exports = { listen, notify, respond, respondError };
