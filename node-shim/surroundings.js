'use strict';
// What tenant code finds around it. It should see a process in which nothing but its own files was loaded, and that was started for it.

const { syncBuiltinESMExports } = require('node:module');
const os = require('node:os');
const path = require('node:path');

/** Without /proc/cpuinfo Node knows of no CPU at all, and packages divide by their number. */
function showCpus() {
  if (os.cpus().length > 0) return;
  const times = { user: 0, nice: 0, sys: 0, idle: 0, irq: 0 };
  const count = os.availableParallelism();
  os.cpus = () => Array.from({ length: count }, () => ({ model: 'unknown', speed: 0, times: { ...times } }));
  syncBuiltinESMExports(); // `import { cpus } from 'node:os'`
}

function hideShim() {
  for (const file of Object.keys(require.cache)) {
    if (file.startsWith(__dirname + path.sep)) delete require.cache[file];
  }
  // `require.main` of modules loaded from now on.
  process.mainModule = undefined;
  process.argv = [process.execPath];
  Error.stackTraceLimit = 30;
}

/** @param {Record<string, string>} environment what the app has beyond what every worker has */
function addEnvironment(environment) {
  for (const [name, value] of Object.entries(environment)) process.env[name] = value;
}

module.exports = { addEnvironment, hideShim, showCpus };
