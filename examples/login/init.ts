// Runs once in each worker, before any function.
const firebase = require('firebase/app');
require('firebase/auth');

firebase.initializeApp({
  apiKey: process.env.FIREBASE_API_KEY ?? 'demo-api-key',
  authDomain: 'demo-login.firebaseapp.com',
  projectId: 'demo-login',
});

console.log(`firebase ${firebase.SDK_VERSION} is initialized for project ${firebase.app().options.projectId}`);

module.exports = { startedAt: new Date().toISOString() };
