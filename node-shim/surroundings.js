'use strict';
// Takes the shim out of what tenant code can look at: it should see a process in which nothing but its own files was loaded.

const path = require('node:path');

function hideShim() {
  for (const file of Object.keys(require.cache)) {
    if (file.startsWith(__dirname + path.sep)) delete require.cache[file];
  }
  // `require.main` of modules loaded from now on.
  process.mainModule = undefined;
  process.argv = [process.execPath];
  Error.stackTraceLimit = 30;
}

module.exports = { hideShim };
