'use strict';
// What an invocation cost, as far as the process can tell.

const { cpuUsage, monotonic, resourceUsage, rss } = require('./primordials.js');

/** Reading the resident size opens a file in /proc (5 µs and more): not more often than this. */
const RSS_EVERY_MS = 100;

let rssBytes = 0;
let rssAt = -Infinity;

/** Microseconds of CPU this process has used. */
function cpuMicros() {
  const { user, system } = cpuUsage();
  return user + system;
}

/** @param {number} cpuBefore what `cpuMicros()` said when the invocation began @returns {string} JSON */
function usageSince(cpuBefore) {
  const { userCPUTime, systemCPUTime, maxRSS } = resourceUsage();
  const peakRssBytes = maxRSS * 1024;
  const at = monotonic();
  if (at - rssAt >= RSS_EVERY_MS) {
    rssAt = at;
    try {
      rssBytes = rss();
    } catch {
      rssBytes = peakRssBytes; // No /proc in this sandbox.
    }
  }
  return `{"cpuMicros":${userCPUTime + systemCPUTime - cpuBefore},"rssBytes":${rssBytes},"peakRssBytes":${peakRssBytes}}`;
}

module.exports = { cpuMicros, usageSince };
