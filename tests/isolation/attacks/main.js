'use strict';
// The tenant: one function that carries out the attack it is asked for, and answers what came of it.
const attacks = {
  ...require('../attacks/files.js'),
  ...require('../attacks/processes.js'),
  ...require('../attacks/calls.js'),
  ...require('../attacks/network.js'),
  ...require('../attacks/egress.js'),
  ...require('../attacks/resources.js'),
  ...require('../attacks/controls.js'),
};

exports.handleEvent = async ({ username, args = {} }) => {
  if (!Object.hasOwn(attacks, username)) return `no attack is called ${username}`;
  try {
    return String(await attacks[username](args));
  } catch (error) {
    return error?.code ?? error?.name ?? String(error);
  }
};
