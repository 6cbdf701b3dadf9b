'use strict';
// What the service reads from the exit status (PROTOCOL.md, "Exit codes").

module.exports = {
  /** An orderly end: `shutdown`, or the service is gone. */
  EXIT_DONE: 0,
  /** An uncaught error in tenant code: the state of the process is unknown. */
  EXIT_UNCAUGHT: 70,
  /** The channel is broken: a malformed frame, or descriptor 4 cannot be written. */
  EXIT_CHANNEL: 71,
};
