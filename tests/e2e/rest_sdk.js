// ChatKitty's own client, unchanged, against this service: each call's status and data, or what its refusal said, as JSON.
const { ChatKitty } = require('chatkitty-platform-sdk');

const [clientId, clientSecret, base, part, id] = process.argv.slice(2);
const client = new ChatKitty({ clientId, clientSecret, basePath: base, authorizationBasePath: `${base}/oauth/token` });
const { Runtime, Functions, FunctionVersions, Users } = client;
const said = {};

async function call(name, promise) {
  const response = await promise.catch((error) => {
    if (!error.response) throw error;
    return error.response;
  });
  said[name] = { status: response.status, data: response.data };
  return response.data;
}

async function change() {
  await call('fresh', Runtime.retrieveNodejsRuntime());
  const dependencies = [{ name: 'is-number', version: '7.0.0', defaultDependency: false }];
  await call('dependencies', Runtime.updateNodejsRuntimeDependencies(dependencies));
  await call('environment', Runtime.updateNodejsRuntimeEnvironmentVariables({ GREETING: 'hello', KEY: 'hunter2' }));
  const script = { script: 'export const greeting = process.env.GREETING;' };
  await call('initialization', Runtime.updateNodejsRuntimeInitializationScript(script));
  const wanted = { type: 'UserAttemptedStartSession', name: 'Login', description: 'lets in', initializeAsynchronously: false };
  const created = await call('created', Runtime.createNodejsRuntimeFunction(wanted));
  await call('again', Runtime.createNodejsRuntimeFunction(wanted));
  await call('none', Functions.retrieveFunctionCurrentVersion(created.id));
  const handlerScript = (number) => `
    import isNumber from 'is-number';
    export async function handleEvent(event: { username: string }, context: any) {
      return { said: process.env.GREETING + ' ' + event.username, number: isNumber(${number}) };
    }`;
  await call('first', Functions.createFunctionVersion(created.id, { handlerScript: handlerScript(1) }));
  await call('second', Functions.createFunctionVersion(created.id, { handlerScript: handlerScript(2) }));
  await call('syntax', Functions.createFunctionVersion(created.id, { handlerScript: 'export const a = 1;\nconst = 2;' }));
  await call('throws', Functions.createFunctionVersion(created.id, { handlerScript: 'throw new Error("at start");' }));
  await call('unknownPackage', Runtime.updateNodejsRuntimeDependencies([{ name: '../x', version: '1', defaultDependency: false }]));
}

async function look() {
  await call('runtime', Runtime.retrieveNodejsRuntime());
  await call('functions', Runtime.listNodejsRuntimeFunctions(0, 10, ['id,desc']));
  const found = await call('function', Functions.retrieveFunction(Number(id)));
  const versions = await call('versions', Functions.listFunctionVersions(found.id, 0, 1));
  await call('current', Functions.retrieveFunctionCurrentVersion(found.id));
  await call('version', FunctionVersions.retrieveFunctionVersion(versions._embedded.versions[0].id));
  await call('invocations', Functions.listFunctionInvocations(found.id, 0, 5, ['createdTime,desc']));
  await call('users', Users.listUsers());
  await call('elsewhere', Functions.retrieveFunction(found.id + 1000));
}

(part === 'change' ? change() : look()).then(() => process.stdout.write(JSON.stringify(said)));
